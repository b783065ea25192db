"""Making the checks of all that a distribution offers."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from mimkit.conformance import (
    common,
    dense,
    encoders,
    heads,
    losses,
    maskers,
    recipes,
    targets,
    units,
)
from mimkit.conformance.checks import CHECKS, Check, FailedError, NotApplicableError
from mimkit.conformance.specimen import Specimen
from mimkit.errors import MimkitError, PluginError, nearest
from mimkit.recipe.registry import KINDS, Entry, entries, same_distribution

__all__ = ["Examination", "Verdict", "checks_of", "entries_of", "examine"]

# Importing these modules is what registers their checks.
_MODULES = (common, maskers, encoders, dense, targets, heads, losses, units, recipes)

Outcome = Literal["passed", "failed", "not applicable", "not run"]


@dataclass(frozen=True)
class Verdict:
    """What one check found of one part.

    Args:
        entry: the part.
        check: the check.
        outcome: "not run" if an earlier check failed without which it makes no sense.
        reason: why it failed or does not apply; else "".
        advice: what the part's author should do; else "".
        seconds: that it took.
    """

    entry: Entry
    check: Check
    outcome: Outcome
    reason: str = ""
    advice: str = ""
    seconds: float = 0.0


@dataclass
class Examination:
    """The checks of one part, made one by one.

    Args:
        entry: the part.
        workdir: an empty folder.
        raises: let through what a part raises, for its traceback.
        failed_gate: the check that failed without which no other makes sense; else "".
    """

    entry: Entry
    workdir: Path
    raises: bool = False
    failed_gate: str = ""
    specimen: Specimen = field(init=False)

    def __post_init__(self) -> None:
        self.specimen = Specimen(self.entry, self.workdir)

    def make(self, check: Check) -> Verdict:
        """Makes one check; never raises for what a part does."""
        if self.failed_gate:
            return Verdict(self.entry, check, "not run", f"{self.failed_gate} failed")
        start = time.perf_counter()
        outcome: Outcome = "passed"
        reason = advice = ""
        try:
            check.run(self.specimen)
        except NotApplicableError as error:
            outcome, reason = "not applicable", str(error)
        except FailedError as failure:
            outcome, reason, advice = "failed", failure.reason, failure.advice
        except MimkitError as error:
            outcome, reason, advice = "failed", str(error), "Mend what the message names."
        except Exception as error:  # a part may raise anything
            outcome, reason = "failed", f"{type(error).__name__}: {error}"
            advice = "Mend the error; under pytest its traceback is shown."
            if self.raises:
                raise
        if outcome == "failed" and check.gate:
            self.failed_gate = check.name
        return Verdict(self.entry, check, outcome, reason, advice, time.perf_counter() - start)


def entries_of(distribution: str) -> list[Entry]:
    """Lists all that a distribution registers, kind by kind; nothing is imported.

    Raises: PluginError if it registers nothing.
    """
    known = [entry for kind in KINDS for entry in entries(kind)]
    found = [entry for entry in known if same_distribution(entry.distribution, distribution)]
    if not found:
        names = sorted({entry.distribution for entry in known})
        raise PluginError(
            f"'{distribution}' is no installed distribution that offers parts; there are "
            f"{', '.join(names)}.{nearest(distribution, names)} Install it: pip install "
            f"{distribution}"
        )
    return found


def checks_of(entry: Entry) -> list[Check]:
    """Lists the checks for a part of this kind."""
    return [check for check in CHECKS if entry.kind in check.kinds]


def examine(distribution: str, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Verdict]:
    """Makes all checks of what a distribution offers.

    Args:
        distribution: name of an installed distribution.
        kinds: which kinds of parts.

    Raises: PluginError if it offers nothing.
    """
    for entry in entries_of(distribution):
        if entry.kind in kinds:
            with TemporaryDirectory(prefix="mimkit-check-") as folder:
                examination = Examination(entry, Path(folder))
                for check in checks_of(entry):
                    yield examination.make(check)
