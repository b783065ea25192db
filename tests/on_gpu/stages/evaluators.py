"""Every evaluator on a transformer that was hardly trained: that each runs, and for how long."""

import json
import sys
import time

from on_gpu.recipes import evaluations
from on_gpu.work import Work, settings

_RECIPE = "mae_cifar"
DATA = 'data.name="objects"'
"""Which have labels, masks and objects."""


def run(work: Work) -> None:
    """Tells the seconds of each evaluator as it ends, and its first number."""
    out = work.scratch / "evaluated"
    clock: list[tuple[str, float]] = []

    def hear(line: str) -> None:
        print(line)
        word, _, name = line.partition(" ")
        if word in ("evaluate", "report"):
            now = time.perf_counter()
            if clock and clock[-1][0] in work.sizes.evaluations:
                work.tell(clock[-1][0], now - clock[-1][1], "s")
            clock.append((name.strip(), now))

    words = ["run", _RECIPE, "--device", work.device, "--out", str(out)]
    words += settings([*work.sizes.small, DATA, evaluations(work.sizes.evaluations)])
    code = work.mimkit(*words, heard=hear)
    file = out / _RECIPE / "0" / "results.json"
    if file.is_file():
        results = json.loads(file.read_text("utf-8"))["results"]
        first = {each["evaluator"]: each for each in reversed(results)}
        for name, each in first.items():
            work.tell(f"{name}, {each['metric']}, {each['init']}", each["value"])
    sys.exit(code)
