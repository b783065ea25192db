"""The report of a comparison: one page that opens offline, to be sent to a colleague."""

import base64
import hashlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mimkit.compare import charts
from mimkit.compare.answer import is_layer
from mimkit.compare.budget import describe
from mimkit.compare.charts import Log, Look, name_of
from mimkit.compare.gather import OF_METHOD
from mimkit.compare.methods import recipe_path
from mimkit.compare.records import Comparison, Method, Outcome, Verdicts
from mimkit.compare.tables import MARKS
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.report import words
from mimkit.report.cards import PREFIX, Card, cards
from mimkit.report.embed import Shown, embedded
from mimkit.report.findings import key_of, splitting, worded
from mimkit.report.folder import RunFolder
from mimkit.report.page import template
from mimkit.report.plots import Chart
from mimkit.report.svg import SERIES

MAX_PICTURE_BYTES: Final = 5_000_000
"""All pictures of the page; as text they weigh a third more, and the page stays below 10 MB."""
ALIKE: Final = 1.01
"""Quantities that differ by no more than this factor are called equal."""
_NOT_APART: Final = ("label_fraction", "num_labels", *OF_METHOD)
"""Settings that stand in a column of their own, or follow from a method's encoder."""


@dataclass(frozen=True)
class Cost:
    """What one method was given and what it took.

    Means over its finished runs; before there are any, what the plan expects.

    Args:
        method: as it was planned.
        measured: whether any run has finished.
        images: seen in pre-training.
        steps: of the optimizer.
        flops_per_image: forward and backward, counted by torch.
        train_seconds: of pre-training.
        prepare_seconds: of what targets needed first, such as a tokenizer's training, when it was
            made; a run that finds it in the cache still owes it.
        evaluate_seconds: of the evaluations.
        peak_memory_bytes: the largest of its runs.
        parameters: encoder, head, targets, frozen, trainable to how many.
    """

    method: Method
    measured: bool
    images: float
    steps: float
    flops_per_image: float
    train_seconds: float
    prepare_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: float
    parameters: Mapping[str, int]

    @property
    def flops(self) -> float:
        """Floating-point operations of pre-training, without those of a tokenizer's training."""
        return self.images * self.flops_per_image

    @property
    def seconds(self) -> float:
        """Preparation and pre-training."""
        return self.prepare_seconds + self.train_seconds


@dataclass(frozen=True)
class Quantity:
    """One line of the table of what is equal and what is not.

    Args:
        name: of the quantity.
        values: in words, one for each method.
        ratio: "equal", else largest over smallest; "none in some" where some have none of it; ""
            where there is nothing to compare.
    """

    name: str
    values: tuple[str, ...]
    ratio: str


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


def write_report(comparison: Comparison) -> Path:
    """Writes ``report.html`` from a comparison, its run folders and its pictures.

    Raises: DataError if one of their files is damaged.
    """
    plan, folder = comparison.plan, comparison.folder
    labels = [method.label for method in plan.methods]
    styles = charts.looks(labels)
    finished = [one for one in comparison.outcomes if one.state == "finished"]
    undone = [one for one in comparison.outcomes if one.state != "finished"]
    costs = [_cost(method, finished) for method in plan.methods]
    entries = _entries(comparison.verdicts)
    logs = _logs(labels, finished)
    batch_sizes = {method.label: method.batch_size for method in plan.methods}
    sheets = _sheets(folder / "pictures")
    preparations = _preparations(finished)
    paths = [*sheets, *(one.picture for one in preparations if one.picture is not None)]
    pictures = embedded(paths, MAX_PICTURE_BYTES)
    page = template("report.html.j2", Path(__file__).parent).render(
        comparison=comparison,
        plan=plan,
        labels=labels,
        budget=describe(plan.budget),
        finished=finished,
        undone=undone,
        refused=_refused(comparison, undone),
        costs=costs,
        quantities=_quantities(costs),
        entries=entries,
        protocols=_protocols(entries),
        own_tasks=[found for found in comparison.verdicts if _tells_of_own_task(found)],
        label_charts=_label_charts(entries, styles),
        cost_charts=_cost_charts(entries, costs, styles),
        training=charts.training_charts(logs, batch_sizes),
        progress=charts.progress_charts(logs, batch_sizes, styles),
        layers=_layers(comparison, styles),
        sheets=[(sheets[path], pictures[path]) for path in sheets if path in pictures],
        preparations=[(one, one.card(pictures)) for one in preparations],
        left_out=[path.relative_to(folder) for path in paths if path not in pictures],
        recipes=_recipes(folder, labels),
        marks=MARKS,
        num_colours=len(SERIES),
        distinct=distinct,
        probability=probability,
        seconds=seconds,
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


def seconds(value: float) -> str:
    """A time span, exact enough to compare it with others."""
    return f"{words.count(value)}{words.NARROW}s" if 90 <= value < 7200 else words.duration(value)


def hashed(script: str) -> str:
    """The hash by which the page allows its one script, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _cost(method: Method, finished: Iterable[Outcome]) -> Cost:
    ledgers = [one.ledger for one in finished if one.cell.method == method.label]
    trial = method.trial
    if not ledgers:
        return Cost(
            method=method,
            measured=False,
            images=method.images,
            steps=method.total_steps,
            flops_per_image=trial.flops_per_image,
            train_seconds=method.total_steps * trial.seconds_per_step,
            prepare_seconds=trial.prepare_seconds,
            evaluate_seconds=method.evaluate_seconds,
            peak_memory_bytes=trial.peak_memory_bytes,
            parameters=trial.parameters,
        )
    prepared = [ledger.get("prepared", {}).values() for ledger in ledgers]
    return Cost(
        method=method,
        measured=True,
        images=statistics.fmean(ledger["images_seen"] for ledger in ledgers),
        steps=statistics.fmean(ledger["steps"] for ledger in ledgers),
        flops_per_image=ledgers[0].get("flops_per_image") or trial.flops_per_image,
        train_seconds=statistics.fmean(ledger["seconds"]["train"] for ledger in ledgers),
        prepare_seconds=statistics.fmean(sum(one["seconds"] for one in run) for run in prepared),
        evaluate_seconds=statistics.fmean(ledger["seconds"]["evaluate"] for ledger in ledgers),
        peak_memory_bytes=max(ledger["peak_memory_bytes"] for ledger in ledgers),
        parameters=ledgers[0]["parameters"],
    )


def _quantities(costs: Sequence[Cost]) -> list[Quantity]:
    parts = dict.fromkeys(part for cost in costs for part in cost.parameters)
    lines: list[tuple[str, Sequence[float], Callable[[float], str]]] = [
        ("images seen", [cost.images for cost in costs], words.count),
        ("optimizer steps", [cost.steps for cost in costs], words.count),
        ("images of a step", [cost.method.batch_size for cost in costs], words.count),
        *(
            (f"{part} parameters", [cost.parameters.get(part, 0) for cost in costs], _size)
            for part in parts
        ),
        ("FLOPs per image", [cost.flops_per_image for cost in costs], _flops),
        ("FLOPs of pre-training", [cost.flops for cost in costs], _flops),
        ("time of pre-training", [cost.train_seconds for cost in costs], seconds),
        ("time of preparation", [cost.prepare_seconds for cost in costs], _span),
        ("preparation and pre-training", [cost.seconds for cost in costs], seconds),
        ("time of evaluation", [cost.evaluate_seconds for cost in costs], seconds),
        (
            "images per second",
            [cost.images / cost.train_seconds if cost.train_seconds else 0.0 for cost in costs],
            words.count,
        ),
        ("peak memory", [cost.peak_memory_bytes for cost in costs], words.memory),
    ]
    return [
        Quantity(name, tuple(written(value) for value in values), _ratio(values))
        for name, values, written in lines
        if any(values)
    ]


def _ratio(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    if not min(values):
        return "none in some"
    ratio = max(values) / min(values)
    return "equal" if ratio <= ALIKE else f"×{words.NARROW}{ratio:.3g}"


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
    entries: Iterable[Entry], costs: Sequence[Cost], styles: Mapping[str, Look]
) -> list[Chart]:
    """Each evaluation at its smallest label fraction, against seconds and against FLOPs."""
    chosen: dict[str, Entry] = {}
    for group in _groups(entries):
        entry = group[0]
        held = chosen.get(entry.name)
        if entry.found.gains and (held is None or len(entry.found.gains) > len(held.found.gains)):
            chosen[entry.name] = entry
    measured = [cost for cost in costs if cost.measured]
    spent = (
        ({cost.method.label: cost.seconds for cost in measured}, "s"),
        ({cost.method.label: cost.flops for cost in measured}, "FLOP"),
    )
    return [
        charts.cost_chart(entry.found, cost, unit, styles)
        for entry in chosen.values()
        for cost, unit in spent
    ]


def _layers(
    comparison: Comparison, styles: Mapping[str, Look]
) -> list[tuple[Chart, list[Verdicts], list[tuple[str, str]]]]:
    """Charts of the probes of single layers, with the rows that they are drawn from.

    Returns: each with all pairs of method and start that were measured.
    """
    groups: dict[tuple[str, str], list[Verdicts]] = {}
    for found in comparison.verdicts:
        if is_layer(found.row):
            rest = {k: v for k, v in found.row.protocol.items() if k not in ("layer", "num_layers")}
            groups.setdefault(
                (name_of(found.row.evaluator, found.row.metric), key_of(rest)), []
            ).append(found)
    return [
        (
            charts.layer_chart(group, comparison.outcomes, styles),
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


def _refused(comparison: Comparison, undone: Iterable[Outcome]) -> list[str]:
    """What was refused, but for runs that are among the failed ones already."""
    said = {f"{one.cell}: {one.reason}" for one in undone}
    return [text for text in comparison.refused if text not in said]


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


def _recipes(folder: Path, labels: Iterable[str]) -> list[tuple[str, str]]:
    paths = {label: recipe_path(folder, label) for label in labels}
    return [
        (label, path.read_text(encoding="utf-8", errors="replace"))
        for label, path in paths.items()
        if path.is_file()
    ]


def _plural(noun: str, items: Sequence[object]) -> str:
    return noun if len(items) == 1 else f"{noun}s"


def _size(value: float) -> str:
    return words.magnitude(value) if value else words.MISSING


def _flops(value: float) -> str:
    return words.magnitude(value, "FLOP")


def _span(value: float) -> str:
    return seconds(value) if value else "none"
