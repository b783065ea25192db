"""From the run folders of a comparison to what they say together."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimkit import words
from mimkit.errors import DataError
from mimkit.evaluate.statistics import of_entry
from mimkit.folder import RunFolder, is_whole
from mimkit.report.answer import answer
from mimkit.report.findings import Arm, Cell, Cost, Outcome, Row, Study, Verdicts
from mimkit.report.rows import Number, rows
from mimkit.report.verdicts import judge
from mimkit.study.budget import describe
from mimkit.study.folder import cell_command, failure_file, recipe_path, run_folder
from mimkit.study.records import Method, Plan


def gather(plan: Plan, folder: Path) -> Study:
    """Reads all runs of a comparison, however far they are.

    Only finished runs count: what an interrupted one has measured is left out. A finished run that
    is not the one of the plan is refused by name: it was made by another version of mimkit, saw
    other images, or fewer or more of them.

    Numbers belong to one row if evaluator, metric and protocol agree. One setting that follows
    from a method's encoder may differ, the number of its layers; then the row's protocol does not
    name it. Should other settings differ, or the data whose labels are read, the methods are not
    compared, and that is said.

    Args:
        plan: what should lie there.
        folder: of the comparison.
    """
    methods = {method.label: method for method in plan.methods}
    outcomes = tuple(_outcome(plan, methods[cell.method], cell, folder) for cell in plan.cells)
    found = rows([method.label for method in plan.methods], _numbers(outcomes))
    verdicts = tuple(judge(row) for row in found)
    refused = [
        f"{one.cell}: {one.reason}"
        for one in outcomes
        if one.state == "failed" and is_whole(one.ledger)
    ]
    return study_of(plan, folder, outcomes, verdicts, (*refused, *unlike(found)))


def study_of(
    plan: Plan,
    folder: Path,
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Verdicts],
    refused: Sequence[str] = (),
) -> Study:
    """Joins what was planned and what was found."""
    budget = describe(plan.budget, plan.tune)
    amount = plan.budget.amount
    return Study(
        title=", ".join(method.label for method in plan.methods),
        dataset=plan.dataset,
        folder=folder,
        command=plan.command,
        budget=budget,
        allowance=words.duration(amount) if plan.budget.unit == "time" else words.magnitude(amount),
        seeds=plan.seeds,
        arms=tuple(_arm(method, folder) for method in plan.methods),
        outcomes=tuple(outcomes),
        verdicts=tuple(verdicts),
        answer=answer(verdicts, budget, plan.cells),
        refused=tuple(refused),
        notes=plan.notes,
        mimkit=plan.mimkit,
    )


def _arm(method: Method, folder: Path) -> Arm:
    trial = method.trial
    planned = Cost(
        measured=False,
        images=method.images,
        steps=method.total_steps,
        flops_per_image=trial.flops_per_image,
        prepare_flops=trial.prepare_flops,
        train_seconds=method.pretrain_seconds,
        prepare_seconds=trial.prepare_seconds,
        evaluate_seconds=method.evaluate_seconds,
        peak_memory_bytes=trial.peak_memory_bytes,
        parameters=trial.parameters,
    )
    recipe = recipe_path(folder, method.label)
    return Arm(method.label, method.source, method.batch_size, method.notes, recipe, planned)


def _outcome(plan: Plan, method: Method, cell: Cell, folder: Path) -> Outcome:
    run = RunFolder(run_folder(cell, folder))
    command = shlex.join(cell_command(cell, folder))
    try:
        ledger = run.read_ledger()
        if is_whole(ledger):
            reason = _objection(plan, method, ledger, run.path)
            if reason:
                return Outcome(cell, "failed", run.path, command, reason, ledger)
            results = tuple(run.read_results()["results"])
            for result in results:
                of_entry(result)  # damaged scores are found here, where the run is known
            return Outcome(cell, "finished", run.path, command, "", ledger, results)
    except DataError as error:
        return Outcome(cell, "failed", run.path, command, str(error))
    failed = failure_file(cell, folder)
    if failed.is_file():
        reason = failed.read_text(encoding="utf-8", errors="replace").strip()
        return Outcome(cell, "failed", run.path, command, reason, ledger)
    return Outcome(cell, "missing", run.path, command, ledger=ledger)


def _objection(plan: Plan, method: Method, ledger: Mapping[str, Any], path: Path) -> str:
    """Says why a finished run does not belong to the plan; "" if it does."""
    expected = {
        "mimkit": (plan.mimkit, ledger.get("mimkit")),
        "the fingerprint of its training images": (
            method.trial.fingerprint,
            ledger.get("dataset", {}).get("fingerprint"),
        ),
        "its optimizer steps": (method.total_steps, ledger.get("steps")),
        "the images it has seen": (method.images, ledger.get("images_seen")),
    }
    differ = [
        f"{name} must be {wanted}, but is {found}"
        for name, (wanted, found) in expected.items()
        if found != wanted
    ]
    if not differ:
        return ""
    return f"not comparable: {'; '.join(differ)}. Remove {path}, then repeat the same command."


def _numbers(outcomes: Sequence[Outcome]) -> Iterator[Number]:
    """All numbers; where runs read other labels, that is a setting which keeps them apart."""
    data = {outcome.cell: _labelled(outcome.ledger) for outcome in outcomes if outcome.results}
    apart = len(set(data.values())) > 1
    for outcome in outcomes:
        for result in outcome.results:
            protocol = dict(result["protocol"])
            if apart:
                protocol["data"] = data[outcome.cell]
            yield Number(outcome.cell.method, outcome.cell.seed, protocol, result)


def _labelled(ledger: Mapping[str, Any]) -> str:
    """Names the data whose labels a run reads."""
    data = ledger.get("labelled", ledger["dataset"])
    return f"{data['name']} {data['fingerprint'][:8]}"


def unlike(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names methods that were measured alike but for a setting, so that no row holds both."""
    said: dict[object, str] = {}
    for row in rows:
        others = [
            (_differing(row, other), other)
            for other in rows
            if (row.evaluator, row.metric) == (other.evaluator, other.metric)
            and row.values.keys().isdisjoint(other.values)
            and not row.own_task
        ]
        if not others:
            continue
        names, other = min(others, key=lambda found: len(found[0]))
        one, two = (", ".join(held.values) for held in (row, other))
        settings = "; ".join(
            f"{name} {row.protocol.get(name)} and {other.protocol.get(name)}" for name in names
        )
        said.setdefault(
            (row.evaluator, row.metric, frozenset((one, two)), *names),
            f"{row.evaluator} {row.metric}: {one} and {two} are not compared, as they were "
            f"measured with different settings ({settings})",
        )
    return tuple(said.values())


def _differing(row: Row, other: Row) -> list[str]:
    names = dict.fromkeys((*row.protocol, *other.protocol))
    return [name for name in names if row.protocol.get(name) != other.protocol.get(name)]
