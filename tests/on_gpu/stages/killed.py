"""Selfie as in the paper on CIFAR-10: killed in the middle, resumed by the same command.

Then once more without being killed: on a GPU the two need not agree bit for bit, and this tells
how far apart they are.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from on_gpu.work import Work, settings


def run(work: Work) -> None:
    """Tells how the killed run went on, and its distance from the other."""
    killed, whole = work.scratch / "killed", work.scratch / "whole"
    words = ["run", "selfie_cifar", "--device", work.device]
    words += settings([*work.sizes.selfie, "evaluate=[]"])
    work.tell("killed after the checkpoint of step", _kill(killed, words))
    goes_on: list[str] = []

    def hear(line: str) -> None:
        print(line)
        if line.startswith("going on at step"):
            goes_on.append(line)

    _do(work, [*words, "--out", str(killed)], hear)
    work.tell("resumed", goes_on[0])
    _tell_cost(work, killed)
    _do(work, [*words, "--out", str(whole)], print)
    _compare(work, killed, whole)


def _folder(out: Path) -> Path:
    return out / "selfie_cifar" / "0"


def _kill(out: Path, words: list[str]) -> int:
    """Starts the run, kills it at its second checkpoint, and returns that checkpoint's step."""
    with subprocess.Popen([sys.executable, "-m", "mimkit", *words, "--out", str(out)]) as process:
        while process.poll() is None:
            held = sorted(_folder(out).glob("checkpoints/step_*.json"))
            steps = [int(file.stem.removeprefix("step_")) for file in held]
            if len(steps) > 1:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return steps[-1]
            time.sleep(0.02)
    sys.exit("the run ended before it could be killed")


def _do(work: Work, words: list[str], heard: Callable[[str], None]) -> None:
    code = work.mimkit(*words, heard=heard)
    if code:
        sys.exit(code)


def _tell_cost(work: Work, out: Path) -> None:
    ledger = json.loads((_folder(out) / "ledger.json").read_text("utf-8"))
    work.tell("steps", ledger["steps"])
    work.tell("images/s", ledger["images_per_second"])
    work.tell("compiled", str(ledger["compiled"]))
    work.tell("peak memory", ledger["peak_memory_bytes"] / 2**30, "GiB")
    work.tell("an image", ledger["flops_per_image"] / 1e9, "GFLOP")


def _compare(work: Work, killed: Path, whole: Path) -> None:
    logs = [_losses(killed), _losses(whole)]
    if [step for step, _ in logs[0]] != [step for step, _ in logs[1]]:
        sys.exit("the two runs logged other steps")
    pairs = [(one, other) for (_, one), (_, other) in zip(*logs, strict=True)]
    work.tell("loss at the end", pairs[-1][0])
    largest = max(abs(one - other) / abs(other) for one, other in pairs)
    work.tell("largest difference of a logged loss", 100 * largest, "%")
    first, second = (load_file(_folder(out) / "encoder.safetensors") for out in (killed, whole))
    equal = sum(bool((first[name] == second[name]).all()) for name in second)
    work.tell("tensors of the encoder that are equal", f"{equal} of {len(second)}")


def _losses(out: Path) -> list[tuple[int, float]]:
    lines = (_folder(out) / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["loss/total"]) for row in rows if "loss/total" in row]
