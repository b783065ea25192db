"""The report of a study: one page that opens offline, to be sent to a colleague."""

import base64
import hashlib
import json
import math
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from mimkit import words
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.folder import RunFolder
from mimkit.report import tuned
from mimkit.report.answer import tally
from mimkit.report.cards import cards
from mimkit.report.costs import cost_of, quantities
from mimkit.report.curves import Log, progress_charts, run_charts, training_charts
from mimkit.report.embed import embedded
from mimkit.report.entries import (
    Entry,
    cost_charts,
    entries,
    label_charts,
    protocols,
    scale,
)
from mimkit.report.findings import Arm, Interval, Outcome, Row, Study, Tuning
from mimkit.report.judged import NAMES, draw_judged
from mimkit.report.layers import layers
from mimkit.report.looks import Look, looks
from mimkit.report.of_run import read_recipe
from mimkit.report.parts import part_charts
from mimkit.report.recall import curve_charts
from mimkit.report.run_facts import facts, setting, skipped, unfinished
from mimkit.report.svg import SERIES
from mimkit.report.tables import MARKS, is_telling
from mimkit.report.wording import BASELINES

Logs = Mapping[str, Mapping[int, Log]]
"""Method label to seed to what the run has logged."""


def write_report(study: Study) -> Path:
    """Writes ``report.html`` from a study, its run folders and its pictures.

    A section stands there when there is something to show: a run has its recipe and its ledger, a
    comparison has costs side by side and pairs of methods.

    Raises: DataError if one of their files is damaged.
    """
    labels, styles = study.labels, looks(study.labels)
    logs = _logs(study)
    shown = entries(study.verdicts)
    prepared = cards(study.told)
    draw_judged(study)
    sheets = _sheets(study.folder / "pictures", {one.picture for one in prepared})
    paths = [*sheets, *(one.picture for one in prepared if one.picture is not None)]
    pictures = embedded(paths)
    sections = (_of_run if study.is_run else _of_methods)(study, shown, logs)
    page = template().render(
        study=study,
        labels=labels,
        **_findings(study, shown, styles),
        judged=[_judged(one, styles) for one in study.judgements],
        sheets=[(about, pictures[path]) for path, about in sheets.items() if path in pictures],
        cards=[(card, card.picture and pictures.get(card.picture)) for card in prepared],
        left_out=[path.relative_to(study.folder) for path in paths if path not in pictures],
        recipes=_recipes(study.arms),
        **sections,
    )
    path = study.folder / "report.html"
    write_text(path, page)
    return path


def _findings(study: Study, shown: Sequence[Entry], styles: Mapping[str, Look]) -> dict[str, Any]:
    """What was found on one data set: tables and charts."""
    return {
        "entries": shown,
        "tally": tally(study.verdicts),
        "protocols": protocols(shown),
        "own_tasks": [
            found
            for found in study.verdicts
            if found.row.own_task and (study.is_run or is_telling(found.row.metric))
        ],
        "label_charts": label_charts(shown, styles),
        "layers": layers(study, styles),
        "part_charts": part_charts(study, styles),
        "curve_charts": curve_charts(study, styles),
    }


def _judged(study: Study, styles: Mapping[str, Look]) -> dict[str, Any]:
    """What a run was judged by later, on other data."""
    shown = entries(study.verdicts)
    columns = _starts(study, shown)
    return {"study": study, "columns": columns, **_findings(study, shown, styles)}


def _starts(study: Study, shown: Sequence[Entry]) -> list[tuple[str, str]]:
    """The columns of a run's table: every start that was measured."""
    measured = {start for entry in shown for _, start in entry.found.means}
    starts = [start for start in ("pretrained", *BASELINES) if start in measured]
    return [(label, start) for label in study.labels for start in starts]


def _of_methods(study: Study, shown: Sequence[Entry], logs: Logs) -> dict[str, Any]:
    """What only a comparison has: which runs are missing, and what the methods cost."""
    styles, batch_sizes = looks(study.labels), {arm.label: arm.batch_size for arm in study.arms}
    undone = [one for one in study.outcomes if one.state != "finished"]
    costs = {arm.label: cost_of(arm, study.finished) for arm in study.arms}
    return {
        "columns": [(label, "pretrained") for label in study.labels],
        "undone": undone,
        "refused": _refused(study, undone),
        "costs": costs,
        "tuned": study.tuning and _tuned(study.tuning),
        "quantities": quantities(study.arms, [*costs.values()]),
        "cost_charts": cost_charts(shown, costs, styles),
        "training": training_charts(logs, batch_sizes),
        "progress": progress_charts(logs, batch_sizes, styles),
    }


def _tuned(tuning: Tuning) -> dict[str, Any]:
    return {
        "columns": tuned.columns(tuning),
        "lines": list(tuned.lines(tuning)),
        "explained": tuned.explained(tuning),
    }


def _of_run(study: Study, shown: Sequence[Entry], logs: Logs) -> dict[str, Any]:
    """What only a single run has: its recipe, how far it is, all that it logged, its ledger."""
    (outcome,), (arm,) = study.outcomes, study.arms
    recipe, rows = read_recipe(arm.recipe), logs[arm.label][outcome.cell.seed]
    return {
        "columns": _starts(study, shown),
        "seed": recipe.get("seed"),
        "setting": setting(recipe),
        "unfinished": unfinished(rows, recipe, outcome.ledger),
        "facts": facts(study, shown, rows),
        "training": run_charts(rows),
        "progress": [],
        "ledger": outcome.ledger,
        "skipped": skipped(outcome.ledger),
    }


@cache
def template() -> jinja2.Template:
    """Opens the page's template."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        words=words,
        baselines=BASELINES,
        marks=MARKS,
        num_colours=len(SERIES),
        forest=forest,
        scale=scale,
        deviation=deviation,
        distinct=distinct,
        probability=probability,
        hashed=hashed,
    )
    return environment.get_template("page.html.j2")


def forest(difference: Interval, others: Iterable[Interval]) -> dict[str, float]:
    """Places one interval on a line from 0 to 100 that it shares with others, zero at 50."""
    ends = [
        abs(end)
        for other in (difference, *others)
        for end in (other.mean, other.low, other.high)
        if end is not None
    ]
    scale = 46 / (max(ends) or 1.0)

    def place(value: float | None) -> float:
        return round(50 + scale * (difference.mean if value is None else value), 1)

    return {
        "low": place(difference.low),
        "mean": place(difference.mean),
        "high": place(difference.high),
    }


def deviation(row: Row, label: str, start: str) -> float | None:
    """The sample standard deviation over seeds; None of a single one."""
    values = [value for value in row.values[label][start].values() if math.isfinite(value)]
    return statistics.stdev(values) if len(values) > 1 else None


def distinct(outcomes: Iterable[Outcome], *keys: str) -> list[str]:
    """The different values that the ledgers have for one thing, such as their device."""
    found: dict[str, None] = {}
    for outcome in outcomes:
        value: Any = outcome.ledger
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            found[words.count(value) if isinstance(value, int) else str(value)] = None
    return list(found)


def probability(value: float | None) -> str:
    """A p-value in words."""
    if value is None:
        return words.MISSING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def hashed(script: str) -> str:
    """The hash by which the page allows its one script, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _refused(study: Study, undone: Iterable[Outcome]) -> list[str]:
    """What was refused, but for runs that are among the failed ones already."""
    said = {f"{one.cell}: {one.reason}" for one in undone}
    return [text for text in study.refused if text not in said]


def _logs(study: Study) -> dict[str, dict[int, Log]]:
    return {
        label: {
            one.cell.seed: RunFolder(one.folder, say=lambda _: None).metrics_rows()
            for one in study.told
            if one.cell.method == label
        }
        for label in study.labels
    }


def _sheets(folder: Path, on_cards: Container[Path | None]) -> dict[Path, dict[str, str]]:
    """The pictures of a study: file to what the manifest says of it, if there is one."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        beside = (path for path in sorted(folder.glob("*.png")) if path not in on_cards)
        return {path: {"title": "", "description": ""} for path in beside}
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        # Only what lies beside the manifest: it may come from elsewhere.
        found = {folder / Path(sheet["file"]).name: sheet for sheet in listed}
        judged = {path: {"title": "", "description": ""} for path in sorted(folder.glob(NAMES))}
        return judged | {
            path: {"title": str(sheet["title"]), "description": str(sheet["description"])}
            for path, sheet in found.items()
            if path.is_file()
        }
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{manifest}: must list sheets with title, file and description, but does not "
            f"({error!r}). Remove it; the same command draws the pictures again."
        ) from error


def _recipes(arms: Iterable[Arm]) -> list[tuple[str, str]]:
    return [
        (arm.label, arm.recipe.read_text(encoding="utf-8", errors="replace"))
        for arm in arms
        if arm.recipe.is_file()
    ]
