"""Small runs in several processes of this machine, for several test files."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import TINY
from safetensors.torch import load_file

HERE = Path(__file__).parent
WAIT = 900
"""Seconds: the processes may share one core, which is busy with other tests."""
SETTINGS = ("encoder.drop_path=0.0", "train.checkpoint_every_steps=3")


def torchrun(processes, *words, more=("--standalone",)):
    command = [sys.executable, "-m", "torch.distributed.run", *more]
    command += [f"--nproc-per-node={processes}", *map(str, words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process, *, fails=False):
    """Waits for a process; returns what it said."""
    try:
        output, _ = process.communicate(timeout=WAIT)
    finally:
        process.kill()
    assert (process.returncode != 0) == fails, output
    return output


def begin(processes, folder, *settings, parallel="fsdp", stop=(), fresh=False, more=()):
    """Starts a small run, or goes on with it; ``stop``: SIGNAL, RANK and STEP of `stopping`."""
    folder.mkdir(exist_ok=True)
    recipe = folder / "tiny.toml"
    recipe.write_text(TINY)
    words = [HERE / "stopping.py", *stop] if stop else ["-m", "mimkit"]
    words += ["run", recipe, "--out", folder, "--device", "cpu", *(["--fresh"] if fresh else [])]
    for one in (*SETTINGS, f"train.parallel={parallel}", *settings):
        words += ["--set", one]
    return torchrun(processes, *words, more=more or ("--standalone",))


def run_of(folder):
    return folder / "tiny/0"


def encoder(folder):
    return load_file(run_of(folder) / "encoder.safetensors")


def curve(folder):
    """What the log says of each step but times: (step, name) to value; no step comes twice."""
    found = {}
    for line in (run_of(folder) / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            if not name.startswith("time/"):
                assert (step, name) not in found
                found[step, name] = value
    return found
