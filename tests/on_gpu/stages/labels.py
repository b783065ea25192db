"""Selfie's table of labels, as far as the time goes: one fraction after the other."""

import json
import sys
from typing import Any, Final

from on_gpu.work import Work, settings

_RECIPE: Final = "selfie_cifar"
_FRACTIONS: Final = (0.08, 0.05, 0.2, 1.0)
"""Of the recipe's table, the one with the published difference first."""


def run(work: Work) -> None:
    """Tells each fraction's means as soon as they are known."""
    out = work.scratch / "labels"
    file = out / _RECIPE / "0" / "results.json"
    told = 0

    def hear(line: str) -> None:
        nonlocal told
        print(line)
        if line.partition(" ")[0] in ("evaluate", "report") and file.is_file():
            known = json.loads(file.read_text("utf-8"))["summaries"]
            for each in known[told:]:
                _tell(work, each)
            told = len(known)

    words = ["run", _RECIPE, "--device", work.device, "--out", str(out)]
    words += settings([*work.sizes.labels, setting(work.sizes.finetune)])
    sys.exit(work.mimkit(*words, heard=hear))


def setting(options: str) -> str:
    """Returns the setting that fine-tunes at one fraction after the other."""
    tables = [f'{{part = "finetune", label_fractions = [{f}], {options}}}' for f in _FRACTIONS]
    return f"evaluate=[{', '.join(tables)}]"


def _tell(work: Work, summary: dict[str, Any]) -> None:
    share = 100 * summary["protocol"]["label_fraction"]
    name = f"{summary['metric']} at {share:g} % of the labels, {summary['init']}"
    work.tell(name, 100 * summary["mean"], f"%, n = {len(summary['seeds'])}")
