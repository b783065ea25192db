import torch
from torch import nn

from mimkit.parts.loss import StepOutput
from mimkit.recipe.sections import TrainSection
from mimkit.train.distributed import World
from mimkit.train.means import Means
from mimkit.train.optim import total_steps, warmup_steps
from mimkit.train.precision import uses_bfloat16
from mimkit.train.trial import StepTrial, untouched


def section(**changes):
    return TrainSection(**{"batch_size": 4, "optimizer": "sgd", "lr": 0.1, **changes})


def test_a_trial_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout())
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    with untouched(module):
        module.train()
        module(torch.randn(5, 3)).sum().backward()
    assert torch.equal(state, torch.random.get_rng_state())
    assert not module.training
    assert all(p.grad is None for p in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_estimate_names_time_rate_and_memory():
    trial = StepTrial(0.4, 0.1, 3 * 2**30, 2e9, compiled=True, overlaps=False)
    assert trial.describe(1200, 64) == (
        "about 10\u202fmin for 1,200 steps (128 images/s, 2.00 GFLOP an image, 3.0 GiB, compiled)"
    )


def test_epochs_become_steps_of_the_training_images():
    train = section(total_epochs=2.5, warmup_epochs=0.5)
    assert (total_steps(train, 40), warmup_steps(train, 40)) == (25, 5)
    assert total_steps(section(total_steps=7), 40) == 7
    assert warmup_steps(section(total_steps=7), 40) == 0


def test_bfloat16_is_the_default_on_cuda_alone():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not uses_bfloat16(cpu, "auto")
    assert uses_bfloat16(cuda, "auto")
    assert uses_bfloat16(cpu, "bfloat16")
    assert not uses_bfloat16(cuda, "float32")


def test_logged_means_leave_skipped_steps_out():
    means = Means(World(0, 1, torch.device("cpu")))
    for loss, finite in ((1.0, True), (float("nan"), False), (3.0, True)):
        value = torch.tensor(loss)
        output = StepOutput(value, {"a": value}, {"a/accuracy": value})
        means.add(output, value, torch.tensor(finite))
    assert means.read() == {
        "loss/total": 2.0,
        "loss/a": 2.0,
        "metric/a/accuracy": 2.0,
        "grad_norm": 2.0,
    }
