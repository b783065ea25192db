"""Pre-training in this process, for tests of how steps are computed."""

import io
import json
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.run import pretrain
from mimkit.recipe.schema import load
from mimkit.train.distributed import World

LAST = "checkpoints/step_00000012.safetensors"


def here(recipe: Path, folder: Path, *settings: str) -> str:
    """Pre-trains, without what comes after it; gives what was said."""
    said = Console(record=True, width=10_000, file=io.StringIO())
    loaded = load(str(recipe), overrides=["evaluate=[]", *settings])
    with RunFolder(folder, writable=True, say=said.print) as opened:
        current = open_run(loaded, opened, World(0, 1, torch.device("cpu")), said)
        pretrain(current)
    return said.export_text()


def ledger(folder: Path) -> dict:
    return json.loads((folder / "ledger.json").read_text())


def assert_same_weights(one: Path, other: Path) -> None:
    """Whether two runs of twelve steps have ended alike, bit for bit."""
    a, b = load_file(one / LAST), load_file(other / LAST)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
