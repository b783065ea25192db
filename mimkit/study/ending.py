"""What would settle what a comparison leaves open."""

import shlex
from collections.abc import Iterator

from mimkit.report import ending
from mimkit.report.answer import main_row
from mimkit.report.costs import cost_of
from mimkit.report.findings import Pair, Study, Verdicts
from mimkit.report.verdicts import MOST_SEEDS, differs
from mimkit.report.wording import baseline_of

_FIRST_SEEDS = 3
"""Seeds to begin with where one gives no interval."""


def steps(study: Study, jobs: int) -> Iterator[ending.Next]:
    """Names what is open, the cheapest first, with the command that would settle it.

    Args:
        study: all that is known.
        jobs: runs at once.
    """
    costs = {arm.label: cost_of(arm, study.finished) for arm in study.arms}
    seconds = {label: cost.train_seconds + cost.evaluate_seconds for label, cost in costs.items()}
    undone = [one.cell for one in study.outcomes if one.state != "finished"]
    if undone:
        left = sum(seconds[cell.method] for cell in undone)
        yield ending.Next(f"{len(undone)} unfinished runs", study.command, left / jobs)
        return
    main = main_row(study.verdicts)
    unsettled = [] if main is None else list(_open(main))
    if not unsettled:
        return
    have = len(study.seeds)
    if have == 1:
        what, seeds = "intervals for every difference", _FIRST_SEEDS
    else:
        needed = [(n, name) for name, n in unsettled if n is not None and n > have]
        if not needed:
            yield ending.Next(
                f"{unsettled[0][0]}: more seeds, up to {MOST_SEEDS:,}, would not settle it; a "
                "larger --budget or more test images may"
            )
            return
        seeds, what = min(needed)
    cost = (seeds - have) * sum(seconds.values()) / jobs
    yield ending.Next(what, with_seeds(study.command, seeds), cost)


def with_seeds(command: str, seeds: int) -> str:
    """The same command with another number of seeds."""
    kept: list[str] = []
    given = shlex.split(command)
    for number, word in enumerate(given):
        follows = number > 0 and given[number - 1] == "--seeds"
        if word != "--seeds" and not word.startswith("--seeds=") and not follows:
            kept.append(word)
    return shlex.join([*kept, "--seeds", str(seeds)])


def _open(main: Verdicts) -> Iterator[tuple[str, int | None]]:
    """What the main row leaves open, and the seeds that should settle it, where any should."""
    for pair in main.pairs:
        if not differs(pair):
            yield f"to tell {pair.first} from {pair.second}", pair.seeds_needed
    for gain in main.gains:
        if gain.difference.direction == "none":
            yield _gained(gain), gain.seeds_needed


def _gained(gain: Pair) -> str:
    return f"to tell {gain.first} from {baseline_of(gain)}"
