"""The report of a comparison: one page that opens offline, to be sent to a colleague."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mimkit import words
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.folder import RunFolder
from mimkit.report import charts
from mimkit.report.cards import PREFIX, Card, cards
from mimkit.report.charts import Look, name_of
from mimkit.report.costs import cost_of, quantities
from mimkit.report.curves import Log, progress_charts, training_charts
from mimkit.report.embed import Shown, embedded
from mimkit.report.findings import Arm, Cost, Outcome, Study, Verdicts
from mimkit.report.of_run import key_of, splitting, worded
from mimkit.report.page import template
from mimkit.report.plots import Chart
from mimkit.report.rows import OF_METHOD
from mimkit.report.svg import SERIES
from mimkit.report.tables import MARKS
from mimkit.report.wording import is_layer

MAX_PICTURE_BYTES: Final = 5_000_000
"""All pictures of the page; as text they weigh a third more, and the page stays below 10 MB."""
_NOT_APART: Final = ("label_fraction", "num_labels", *OF_METHOD)
"""Settings that stand in a column of their own, or follow from a method's encoder."""


@dataclass(frozen=True)
class Entry:
    """One line of the table of results.

    Args:
        found: the numbers and what they say.
        detail: the settings that tell it from others of its evaluator and metric; may be empty.
    """

    found: Verdicts
    detail: str

    @property
    def name(self) -> str:
        """What was measured."""
        return name_of(self.found.row.evaluator, self.found.row.metric)

    @property
    def fraction(self) -> float | None:
        """The share of labels that was used, if the protocol says so."""
        fraction = self.found.row.protocol.get("label_fraction")
        return fraction if isinstance(fraction, int | float) else None


@dataclass
class Preparation:
    """Something that was prepared once, such as a tokenizer, and who uses it.

    Args:
        target: name of the target that needed it.
        ledger: what the ledger says of it.
        picture: file of its picture, or None.
        users: method label to seeds.
    """

    target: str
    ledger: dict[str, Any]
    picture: Path | None
    users: dict[str, list[int]] = field(default_factory=dict)

    def card(self, pictures: Mapping[Path, Shown]) -> Card:
        """Makes its card, with the picture if the page could hold it."""
        shown = pictures.get(self.picture) if self.picture is not None else None
        return cards({"prepared": {self.target: self.ledger}}, [shown] if shown else [])[0]

    @property
    def used_by(self) -> str:
        """Its users in words."""
        return "; ".join(
            f"{label} ({_plural('seed', seeds)} {', '.join(map(str, seeds))})"
            for label, seeds in self.users.items()
        )


def write_report(study: Study) -> Path:
    """Writes ``report.html`` from a study, its run folders and its pictures.

    Raises: DataError if one of their files is damaged.
    """
    folder, labels = study.folder, study.labels
    styles = charts.looks(labels)
    finished = study.finished
    undone = [one for one in study.outcomes if one.state != "finished"]
    costs = {arm.label: cost_of(arm, finished) for arm in study.arms}
    entries = _entries(study.verdicts)
    logs = _logs(labels, finished)
    batch_sizes = {arm.label: arm.batch_size for arm in study.arms}
    sheets = _sheets(folder / "pictures")
    preparations = _preparations(finished)
    paths = [*sheets, *(one.picture for one in preparations if one.picture is not None)]
    pictures = embedded(paths, MAX_PICTURE_BYTES)
    page = template("study.html.j2", Path(__file__).parent).render(
        study=study,
        labels=labels,
        finished=finished,
        undone=undone,
        refused=_refused(study, undone),
        costs=costs,
        quantities=quantities(study.arms, [*costs.values()]),
        entries=entries,
        protocols=_protocols(entries),
        own_tasks=[found for found in study.verdicts if _tells_of_own_task(found)],
        label_charts=_label_charts(entries, styles),
        cost_charts=_cost_charts(entries, costs, styles),
        training=training_charts(logs, batch_sizes),
        progress=progress_charts(logs, batch_sizes, styles),
        layers=_layers(study, styles),
        sheets=[(sheets[path], pictures[path]) for path in sheets if path in pictures],
        preparations=[(one, one.card(pictures)) for one in preparations],
        left_out=[path.relative_to(folder) for path in paths if path not in pictures],
        recipes=_recipes(study.arms),
        marks=MARKS,
        num_colours=len(SERIES),
        distinct=distinct,
        probability=probability,
        hashed=hashed,
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


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


def _entries(verdicts: Iterable[Verdicts]) -> list[Entry]:
    """The rows that compare methods: no single layers, and no method's own task."""
    kept = [found for found in verdicts if not is_layer(found.row) and not found.row.own_task]
    return [
        Entry(found, worded(found.row.protocol, _apart(found, kept)))
        for found in kept
        if any(mean.num_seeds for mean in found.means.values())
    ]


def _apart(found: Verdicts, others: Iterable[Verdicts]) -> list[str]:
    """Settings that keep a row from standing in one line with others of its name."""
    measured = found.row.evaluator, found.row.metric
    names = splitting(
        [
            other.row.protocol
            for other in others
            if (other.row.evaluator, other.row.metric) == measured
        ]
    )
    return [name for name in names if name not in _NOT_APART]


def _groups(entries: Iterable[Entry]) -> list[list[Entry]]:
    """Entries that only the label fraction tells apart, smallest first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.name, entry.detail), []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: 0.0 if entry.fraction is None else entry.fraction)
    return list(groups.values())


def _label_charts(entries: Iterable[Entry], styles: Mapping[str, Look]) -> list[Chart]:
    return [
        charts.label_chart([entry.found for entry in group], styles, group[0].detail)
        for group in _groups(entries)
        if len(group) > 1 and all(entry.fraction is not None for entry in group)
    ]


def _cost_charts(
    entries: Iterable[Entry], costs: Mapping[str, Cost], styles: Mapping[str, Look]
) -> list[Chart]:
    """Each evaluation at its smallest label fraction, against seconds and against FLOPs."""
    chosen: dict[str, Entry] = {}
    for group in _groups(entries):
        entry = group[0]
        held = chosen.get(entry.name)
        if entry.found.gains and (held is None or len(entry.found.gains) > len(held.found.gains)):
            chosen[entry.name] = entry
    measured = {label: cost for label, cost in costs.items() if cost.measured}
    spent = (
        ({label: cost.seconds for label, cost in measured.items()}, "s"),
        ({label: cost.flops for label, cost in measured.items()}, "FLOP"),
    )
    return [
        charts.cost_chart(entry.found, cost, unit, styles)
        for entry in chosen.values()
        for cost, unit in spent
    ]


def _layers(
    study: Study, styles: Mapping[str, Look]
) -> list[tuple[Chart, list[Verdicts], list[tuple[str, str]]]]:
    """Charts of the probes of single layers, with the rows that they are drawn from.

    Returns: each with all pairs of method and start that were measured.
    """
    groups: dict[tuple[str, str], list[Verdicts]] = {}
    for found in study.verdicts:
        if is_layer(found.row):
            rest = {k: v for k, v in found.row.protocol.items() if k not in ("layer", "num_layers")}
            groups.setdefault(
                (name_of(found.row.evaluator, found.row.metric), key_of(rest)), []
            ).append(found)
    return [
        (
            charts.layer_chart(group, study.outcomes, styles),
            group,
            list(dict.fromkeys(key for found in group for key in found.means)),
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _protocols(entries: Iterable[Entry]) -> list[tuple[str, str, str]]:
    """Evaluator, what it measures, and the settings that all of its rows share, in words."""
    by_name: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        row = entry.found.row
        by_name.setdefault((row.evaluator, entry.name), []).append(row.protocol)
    return [
        (
            evaluator,
            name,
            worded(
                protocols[0],
                [key for key in protocols[0] if len({repr(p.get(key)) for p in protocols}) == 1],
            ),
        )
        for (evaluator, name), protocols in by_name.items()
    ]


def _tells_of_own_task(found: Verdicts) -> bool:
    """True for losses and accuracies of the pre-training task, not for what stands beside them."""
    metric = found.row.metric
    return (
        found.row.own_task
        and not words.is_guess(metric)
        and (metric.startswith("loss/") or words.is_share(metric))
    )


def _refused(study: Study, undone: Iterable[Outcome]) -> list[str]:
    """What was refused, but for runs that are among the failed ones already."""
    said = {f"{one.cell}: {one.reason}" for one in undone}
    return [text for text in study.refused if text not in said]


def _logs(labels: Iterable[str], finished: Sequence[Outcome]) -> dict[str, dict[int, Log]]:
    return {
        label: {
            one.cell.seed: RunFolder(one.folder, say=lambda _: None).metrics_rows()
            for one in finished
            if one.cell.method == label
        }
        for label in labels
    }


def _sheets(folder: Path) -> dict[Path, dict[str, str]]:
    """The pictures of all methods: file to what the manifest says of it."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return {}
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        # Only what lies beside the manifest: it may come from elsewhere.
        found = {folder / Path(sheet["file"]).name: sheet for sheet in listed}
        return {
            path: {"title": str(sheet["title"]), "description": str(sheet["description"])}
            for path, sheet in found.items()
            if path.is_file()
        }
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{manifest}: must list sheets with title, file and description, but does not "
            f"({error!r}). Remove it; the same command draws the pictures again."
        ) from error


def _preparations(finished: Iterable[Outcome]) -> list[Preparation]:
    """What was prepared, once for all runs that share it."""
    found: dict[tuple[str, str, str], Preparation] = {}
    for outcome in finished:
        for target, ledger in outcome.ledger.get("prepared", {}).items():
            picture = outcome.folder / "pictures" / f"{PREFIX}{target}.png"
            content = picture.read_bytes() if picture.is_file() else b""
            key = ledger["title"], key_of(ledger["facts"]), hashlib.sha256(content).hexdigest()
            held = found.setdefault(
                key, Preparation(target, dict(ledger), picture if content else None)
            )
            held.ledger["cached"] &= ledger["cached"]
            held.users.setdefault(outcome.cell.method, []).append(outcome.cell.seed)
    return list(found.values())


def _recipes(arms: Iterable[Arm]) -> list[tuple[str, str]]:
    return [
        (arm.label, arm.recipe.read_text(encoding="utf-8", errors="replace"))
        for arm in arms
        if arm.recipe.is_file()
    ]


def _plural(noun: str, items: Sequence[object]) -> str:
    return noun if len(items) == 1 else f"{noun}s"
