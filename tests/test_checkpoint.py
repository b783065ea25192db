import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from mimkit.errors import DataError
from mimkit.recipe.schema import TrainSection
from mimkit.train import checkpoint
from mimkit.train.optim import make_optimizer


def make(seed=0, name="adamw"):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    train = TrainSection(total_steps=10, batch_size=2, optimizer=name, lr=0.1, weight_decay=0.1)
    return module, make_optimizer(module, train)


def train_step(module, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    module(torch.randn(5, 3, generator=generator)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_restored_training_goes_on_bit_for_bit(tmp_path, name):
    module, optimizer = make(0, name)
    for seed in range(3):
        train_step(module, optimizer, seed)
    checkpoint.save(tmp_path, 3, module, optimizer, {"seconds": 1.5})
    other, other_optimizer = make(1, name)
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    assert (found.step, found.state) == (3, {"seconds": 1.5})
    checkpoint.restore(found, other, other_optimizer)
    for seed in range(3, 6):
        train_step(module, optimizer, seed)
        train_step(other, other_optimizer, seed)
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_the_last_two_are_kept(tmp_path):
    module, optimizer = make()
    for step in (1, 2, 3, 12):
        checkpoint.save(tmp_path, step, module, optimizer, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"step_{step:08d}.{kind}" for step in (3, 12) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty json", "no tensors"])
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path, damage):
    module, optimizer = make()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, module, optimizer, {})
    tensors = tmp_path / "step_00000002.safetensors"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-7])
    elif damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "empty json":
        tensors.with_suffix(".json").write_text("")
    else:
        tensors.unlink()
    said = []
    found = checkpoint.latest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert "step_00000002" in said[0]
    assert "using the one before, of step 1" in said[0]


DAMAGES = {
    "cut": lambda tensors: tensors.write_bytes(tensors.read_bytes()[:-7]),
    "gone": lambda tensors: tensors.unlink(),
    "no record": lambda tensors: tensors.with_suffix(".json").unlink(),
    "record of something else": lambda tensors: tensors.with_suffix(".json").write_text("[]"),
}


@pytest.mark.parametrize("newest", [name for name in DAMAGES if name != "no record"])
@pytest.mark.parametrize("before", DAMAGES)
def test_with_both_damaged_it_stops_and_names_both(tmp_path, newest, before):
    module, optimizer = make()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, module, optimizer, {})
    DAMAGES[before](tmp_path / "step_00000001.safetensors")
    DAMAGES[newest](tmp_path / "step_00000002.safetensors")
    with pytest.raises(DataError) as caught:
        checkpoint.latest(tmp_path, pytest.fail)
    message = str(caught.value)
    assert str(tmp_path / "step_00000001.safetensors") in message
    assert str(tmp_path / "step_00000002.safetensors") in message
    assert "all checkpoints of this run cannot be read" in message
    assert "--fresh, which removes" in message
    assert "the one before" not in message


def test_with_its_only_one_damaged_it_stops_too(tmp_path):
    checkpoint.save(tmp_path, 0, *make(), {})
    DAMAGES["cut"](tmp_path / "step_00000000.safetensors")
    with pytest.raises(DataError, match="the only checkpoint of this run cannot be read"):
        checkpoint.latest(tmp_path, pytest.fail)


def test_a_kill_between_the_two_files_of_a_checkpoint_leaves_the_one_before(tmp_path):
    module, optimizer = make()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, module, optimizer, {})
    (tmp_path / "step_00000002.json").unlink()
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 1


def test_what_lay_ahead_of_a_step_goes_when_the_step_is_written_anew(tmp_path):
    module, optimizer = make()
    for step in (2, 9, 4):  # 9 was damaged, so training went on from 2
        checkpoint.save(tmp_path, step, module, optimizer, {})
    names = sorted(path.stem for path in tmp_path.glob("*.json"))
    assert names == ["step_00000002", "step_00000004"]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_an_optimizer_remembers_comes_back_as_its_parameters_lie_in_memory(tmp_path, name):
    def lying(seed):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
        module.to(memory_format=torch.channels_last)
        train = TrainSection(total_steps=9, batch_size=2, optimizer=name, lr=0.1, weight_decay=0.1)
        return module, make_optimizer(module, train)

    module, optimizer = lying(0)
    image = torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    module(image).square().mean().backward()
    optimizer.step()
    checkpoint.save(tmp_path, 1, module, optimizer, {})
    other, other_optimizer = lying(1)
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    checkpoint.restore(found, other, other_optimizer)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        entries = other_optimizer.state[two]
        assert optimizer.state[one].keys() == entries.keys()
        for key, value in optimizer.state[one].items():
            assert torch.equal(value, entries[key])
            assert value.stride() == entries[key].stride()
    assert not other[0].weight.is_contiguous()  # else this would show nothing


def test_further_tensors_come_back(tmp_path):
    checkpoint.save(tmp_path, 1, *make(), {}, extra={"sums": torch.tensor([1.0, float("inf")])})
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    assert found.part("extra.")["sums"].tolist() == [1.0, float("inf")]


def test_tensors_without_their_record_do_not_exist(tmp_path):
    module, optimizer = make()
    checkpoint.save(tmp_path, 1, module, optimizer, {})
    (tmp_path / "step_00000001.json").unlink()
    assert checkpoint.latest(tmp_path, pytest.fail) is None


def test_a_full_disk_is_one_message_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    module, optimizer = make()
    checkpoint.save(tmp_path, 1, module, optimizer, {})

    def full(tensors, path):
        path.write_bytes(b"half a file")
        # What safetensors says on a full file system.
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("mimkit.train.tensors.save_file", full)
    with pytest.raises(DataError, match=r"step_00000002\.safetensors: the disk is full"):
        checkpoint.save(tmp_path, 2, module, optimizer, {})
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 1
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_of_other_parts_is_refused(tmp_path):
    module, optimizer = make()
    checkpoint.save(tmp_path, 1, module, optimizer, {})
    found = checkpoint.latest(tmp_path, pytest.fail)
    assert found is not None
    with pytest.raises(DataError, match="--fresh"):
        checkpoint.restore(found, nn.Linear(2, 2), optimizer)
