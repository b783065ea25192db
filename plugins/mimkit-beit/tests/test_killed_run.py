"""A run that is killed while its tokenizer trains, as a user sees it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from mimkit_beit import trained
from rich.console import Console

from mimkit.pipeline.run import run
from mimkit.recipe.schema import load

RECIPE = """\
name = "tokens"
[data]
name = "shapes"
image_size = 16
patch_size = 4
num_images = 48
num_test_images = 16
[masker]
part = "random"
mask_ratio = 0.5
mode = "replace"
[encoder]
part = "vit"
embed_dim = 16
depth = 1
num_heads = 2
mask_token = true
[targets.tokens]
part = "dvae"
weights = "train"
codebook_size = 16
hidden_dim = 4
code_dim = 4
total_steps = 12
[head]
part = "linear"
[losses.tokens]
part = "cross_entropy"
[train]
total_steps = 4
batch_size = 8
optimizer = "adamw"
lr = 1e-3
weight_decay = 0.05
"""
# Sends itself a signal as soon as the tokenizer's checkpoint of a step is written.
ASK = """
import os, sys
from mimkit.train import checkpoint
from mimkit_beit import trained
trained._CHECKPOINT_STEPS = 4
save, number, last = checkpoint.save, int(sys.argv[1]), int(sys.argv[2])
def save_and_ask(folder, step, *arguments, **options):
    save(folder, step, *arguments, **options)
    if step == last and "prepared" in str(folder):
        os.kill(os.getpid(), number)
checkpoint.save = save_and_ask
from mimkit.cli import main
sys.argv = ["mimkit", *sys.argv[3:]]
main()
"""


@pytest.mark.slow
def test_killed_twice_while_its_tokenizer_trains_it_ends_the_same(tmp_path, monkeypatch):
    recipe, cache = tmp_path / "tokens.toml", tmp_path / "cache"
    recipe.write_text(RECIPE)
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(trained, "_CHECKPOINT_STEPS", 4)
    quiet = Console(quiet=True)
    whole = run(load(str(recipe)), out=tmp_path / "whole", device="cpu", console=quiet)
    monkeypatch.setenv("MIMKIT_CACHE", str(cache))
    out = tmp_path / "killed"
    command = ["run", str(recipe), "--out", str(out), "--device", "cpu"]

    def ask(number: int, step: int) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", ASK, str(number), str(step), *command],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )

    killed = ask(signal.SIGKILL, 4)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    asked = ask(signal.SIGTERM, 8)
    assert asked.returncode == 143, asked.stderr
    assert "dvae: going on at step 4" in asked.stdout
    said = " ".join(asked.stderr.split())
    assert "stopped by SIGTERM after step 9 of dvae. To go on: mimkit run" in said
    folder = run(load(str(recipe)), out=out, device="cpu", console=quiet)
    for name in ("encoder.safetensors", "checkpoints/step_00000004.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    (one,), (other,) = (
        (tmp_path / place / "prepared").glob("dvae-*.safetensors") for place in ("cache", "other")
    )
    assert one.read_bytes() == other.read_bytes()
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger["seconds"]["prepare"] >= ledger["prepared"]["tokens"]["seconds"] > 0
