"""The checks as a pytest test: a plugin's whole test file."""

from collections.abc import Callable, Mapping
from typing import Any

from mimkit.conformance.examine import Examination, checks_of, entries_of
from mimkit.errors import PluginError
from mimkit.recipe.registry import KINDS


def conformance(
    distribution: str, *, expected_failures: Mapping[str, str] | None = None, recipes: bool = True
) -> Callable[..., None]:
    """Makes a test of every check of every part that a distribution offers.

    >>> test_parts = conformance("mimkit", recipes=False)  # the whole of a test file

    Args:
        distribution: name of an installed distribution.
        expected_failures: ``"masker random: is_documented"`` to the reason why that fails; such a
            check must fail.
        recipes: also check its recipes, which takes seconds for each.

    Raises: PluginError if the distribution offers nothing, or an expected failure names no check.
    """
    import pytest  # noqa: PLC0415 -- only plugin authors have it

    expected = dict(expected_failures or {})
    cases = []
    for entry in entries_of(distribution):
        if entry.kind == "recipes" and not recipes:
            continue
        for check in checks_of(entry):
            name = f"{KINDS[entry.kind].singular} {entry.name}: {check.name}"
            reason = expected.pop(name, None)
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            cases.append(pytest.param(entry, check, id=name, marks=marks))
    if expected:
        raise PluginError(
            f"conformance('{distribution}'), expected_failures: must name checks such as "
            f"'masker random: is_documented', but there is no '{next(iter(expected))}'."
        )
    examinations: dict[Any, Examination] = {}

    @pytest.mark.parametrize(("entry", "check"), cases)
    def test_part(entry: Any, check: Any, tmp_path_factory: Any) -> None:
        if entry not in examinations:
            workdir = tmp_path_factory.mktemp(f"{entry.kind}-{entry.name}")
            examinations[entry] = Examination(entry, workdir, raises=True)
        verdict = examinations[entry].make(check)
        if verdict.outcome in ("not applicable", "not run"):
            pytest.skip(verdict.reason)
        if verdict.outcome == "failed":
            harm = " ".join(check.harm.split())
            pytest.fail(f"{verdict.reason}\n{verdict.advice}\nElse: {harm}", pytrace=False)

    made: Callable[..., None] = test_part
    return made
