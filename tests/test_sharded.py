"""`train.parallel = "fsdp"`: as "ddp" to rounding, checkpoints of any number of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mimkit.errors import RecipeError
from mimkit.parts.part import Module
from mimkit.recipe.schema import TrainSection
from mimkit.train import checkpoint
from mimkit.train.sharding import refuse_unshardable, units_of

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
METHODS = {
    "mae": ("mae_shapes", []),
    "beit": ("beit_shapes", []),
    "cae": ("cae_shapes", []),
    "selfie": ("crossovers/pointer_on_vit", []),
    "lagging": ("cae_shapes", ["targets.latent.lag=true"]),
    "moving": ("cae_shapes", ["targets.latent.momentum=0.9"]),
    "live": ("cae_shapes", ["targets.latent.detach=false"]),
}
PLAIN = ["encoder.drop_path=0.0", "evaluate=[]"]


def start(processes, *words, more=()):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", *more, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def spread_run(processes, recipe, out, *settings, more=()):
    words = ["-m", "mimkit", "run", recipe, "--out", out, "--device", "cpu"]
    for one in (*PLAIN, "train.parallel=fsdp", *settings):
        words += ["--set", one]
    return start(processes, *words, more=more)


def finish(process, code=0):
    output, _ = process.communicate(timeout=280)
    assert process.returncode == code, output
    return output


def encoder(out):
    return load_file(out / "tiny/0/encoder.safetensors")


def assert_close(one, other, atol):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=atol, rtol=1e-4, msg=name)


def section(**changes):
    return TrainSection(total_steps=1, batch_size=2, lr=0.1, **{"optimizer": "adamw", **changes})


class Blocks(Module):
    def __init__(self, block):
        super().__init__()
        self.blocks = nn.ModuleList([block, nn.Identity()])
        self.head = nn.Linear(2, 2)


def test_units_are_members_of_lists_that_have_weights():
    inner = Blocks(nn.Linear(2, 2))
    outer = Blocks(inner)
    assert units_of(outer) == [inner.blocks[0], inner]


def test_batch_norm_is_refused_with_its_name_and_the_way_out():
    with pytest.raises(RecipeError, match=r"blocks\.0.*train\.parallel=ddp"):
        refuse_unshardable(Blocks(nn.BatchNorm2d(2)), section())


def test_sgd_and_weights_without_axes_are_refused():
    module = Blocks(nn.Linear(2, 2))
    refuse_unshardable(module, section())
    with pytest.raises(RecipeError, match="fused SGD"):
        refuse_unshardable(module, section(optimizer="sgd"))
    module.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(RecipeError, match="without axes \\(scale\\)"):
        refuse_unshardable(module, section())


@pytest.mark.slow
def test_every_method_ends_as_with_ddp(tmp_path):
    cases = [
        json.dumps({"name": name, "recipe": str(RECIPES / f"{file}.toml"), "settings": settings})
        for name, (file, settings) in METHODS.items()
    ]
    finish(start(2, HERE / "spread.py", tmp_path, *cases))
    for name in METHODS:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert found, name
        assert max(found.values()) < 1e-6, (name, found)


def drop_last(folder):
    """Takes away what a run has made after its checkpoint of step 10."""
    run = folder / "tiny/0"
    shutil.rmtree(run / "checkpoints/step_00000012")
    for name in ("checkpoints/step_00000012.json", "encoder.safetensors"):
        (run / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 2), (2, 1), (4, 2), (2, 4)])
def test_a_run_goes_on_with_any_number_of_processes(tiny, tmp_path, first, then):
    finish(spread_run(first, tiny, tmp_path))
    before = encoder(tmp_path)
    drop_last(tmp_path)
    finish(spread_run(then, tiny, tmp_path))
    after = encoder(tmp_path)
    if first == then:
        assert all(torch.equal(value, after[name]) for name, value in before.items())
    else:
        assert_close(before, after, 2e-4)


def newest(folder):
    return checkpoint.find(folder / "tiny/0/checkpoints")[0]


def wait_for_step(process, folder, step):
    log = folder / "tiny/0/metrics.jsonl"
    while process.poll() is None:
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(process.communicate()[0])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny, tmp_path):
    process = spread_run(2, tiny, tmp_path, "train.total_steps=4000")
    wait_for_step(process, tmp_path, 4)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    found = newest(tmp_path)
    assert f"stopped by SIGUSR1 after step {found.step}" in output
    assert found.part("model.")["encoder.cls_token"].shape == (1, 1, 16)
