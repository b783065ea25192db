"""The report: one page that opens offline, made from nothing but the files of a run folder."""

import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jinja2

from mimkit import words
from mimkit.errors import DataError
from mimkit.files import write_text
from mimkit.folder import RunFolder
from mimkit.report import of_run as findings
from mimkit.report.cards import cards, cost
from mimkit.report.embed import embedded
from mimkit.report.layers import curves
from mimkit.report.of_run import BASELINES, Row, Table
from mimkit.report.plots import label_chart, layer_chart, training_charts

MAX_LISTED = 10
PARTS = ("masker", "encoder", "targets", "head", "losses")


class Estimate(Protocol):
    """A number and its interval, if it has one."""

    @property
    def mean(self) -> float:
        """The number."""

    @property
    def low(self) -> float | None:
        """Lower end."""

    @property
    def high(self) -> float | None:
        """Upper end."""


@dataclass(frozen=True)
class Fact:
    """One number worth seeing first."""

    label: str
    value: str
    note: str = ""


def write_report(folder: RunFolder) -> Path:
    """Writes ``report.html`` from the other files of the folder, whichever are there.

    Raises: DataError if one of them is damaged.
    """
    rows = folder.metrics_rows()
    results = folder.read_results()
    ledger = folder.read_ledger()
    recipe, recipe_text = _recipe(folder.recipe)
    tables = findings.tables(results)
    paths = sorted(folder.pictures.glob("*.png"))
    pictures = embedded(paths)
    prepared = cards(ledger, list(pictures.values()))
    on_cards = [card.picture for card in prepared]
    page = template("page.html.j2", Path(__file__).parent).render(
        measured=measured,
        title=recipe.get("name", folder.path.name),
        seed=recipe.get("seed"),
        setting=_setting(recipe),
        answer=findings.answer(tables),
        tally=findings.tally(tables),
        unfinished=_unfinished(rows, recipe, ledger),
        facts=_facts(rows, tables, ledger),
        by_labels=[
            (
                table,
                [(table, row) for row in table.rows],
                label_chart(table) if len(table.rows) > 1 else None,
            )
            for table in tables
            if table.by_labels
        ],
        probes=[
            [
                (table, row)
                for table in tables
                for row in table.rows
                if not table.by_labels and (table.baseline is not None) == with_baseline
            ]
            for with_baseline in (True, False)
        ],
        layers=[
            (found, layer_chart(found) if len(found.layers) > 1 else None)
            for found in curves(results)
        ],
        prepared=prepared,
        charts=training_charts(rows),
        pictures=[picture for picture in pictures.values() if picture not in on_cards],
        left_out=[f"{path.parent.name}/{path.name}" for path in paths if path not in pictures],
        ledger=ledger,
        skipped_images=_listed(
            ledger.get("dataset", {}).get("skipped", []),
            lambda item: f"{item.get('path', item.get('index'))} ({item.get('reason')})",
        ),
        skipped_steps=_listed(
            ledger.get("skipped_steps", []),
            lambda item: f"step {item['step']} (images {', '.join(map(str, item['index']))})",
        ),
        recipe_text=recipe_text,
    )
    write_text(folder.report, page)
    return folder.report


def measured(entries: Sequence[tuple[Table, Row]]) -> list[str]:
    """The baselines that a table needs a column for."""
    return [init for init in BASELINES if any(init in row.by_init for _, row in entries)]


@cache
def template(name: str, folder: Path) -> jinja2.Template:
    """Opens a template that may include what this folder holds, and speaks as the report does."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, baselines=BASELINES, forest=forest)
    return environment.get_template(name)


def forest(difference: Estimate, others: Iterable[Estimate]) -> dict[str, float]:
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


def _recipe(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        return {}, ""
    text = path.read_text(encoding="utf-8")
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: must be TOML, but is not ({error}).") from error


def _setting(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names what was run: the data, the part in each slot, the budget."""
    setting = []
    data = recipe.get("data", {})
    if data:
        size = data.get("image_size")
        height, width = size if isinstance(size, list) else (size, size)
        patches = f"patches of {data.get('patch_size')} px"
        setting.append(("data", f"{data.get('name')}, {height} × {width} px, {patches}"))
    for slot in PARTS:
        table = recipe.get(slot, {})
        named = [table] if "part" in table else list(table.values())
        if named:
            setting.append((slot, ", ".join(str(part.get("part")) for part in named)))
    train = recipe.get("train", {})
    for unit in ("steps", "epochs"):
        if train.get(f"total_{unit}") is not None:
            amount = f"{words.count(train[f'total_{unit}'])} {unit}"
            setting.append(("budget", f"{amount}, batches of {words.count(train['batch_size'])}"))
    return setting


def _unfinished(
    rows: Sequence[Mapping[str, float]], recipe: Mapping[str, Any], ledger: Mapping[str, Any]
) -> str | None:
    """Says what is still missing, so that half a run is not read as a whole one."""
    if "evaluate" in ledger.get("seconds", {}):
        return None
    if ledger:
        return "Pre-training is done, but not every evaluation of the recipe: this is a part."
    if not rows:
        return "This run has not logged a step yet."
    step = words.count(rows[-1]["step"])
    total = recipe.get("train", {}).get("total_steps")
    return (
        f"This run is not finished: it has reached step {step}"
        + (f" of {words.count(total)}" if total else "")
        + ", and has not been evaluated."
    )


def _facts(
    rows: Sequence[Mapping[str, float]], tables: Sequence[Table], ledger: Mapping[str, Any]
) -> list[Fact]:
    facts = []
    last = {name: value for row in rows for name, value in row.items()}
    # What was measured at the end counts more than what was logged on the way.
    for table in tables:
        if "pretrained" in table.rows[0].by_init:
            name = f"{table.evaluator}/{table.metric}"
            last[name] = table.rows[0].by_init["pretrained"].mean
    for name, value in last.items():
        if name.startswith("heldout/metric/") and name.endswith("accuracy"):
            note = _guesses(name, last)
            label = "pre-training task, accuracy on held-out images"
            facts.append(Fact(label, words.number(value, name), note))
    for table, row in ((table, table.rows[0]) for table in tables):
        if table.metric == "accuracy" and not table.by_labels and "pretrained" in row.by_init:
            note = ", ".join(
                f"{BASELINES[init]} {words.number(row.by_init[init].mean, table.metric)}"
                for init in measured([(table, row)])
            )
            shown = words.number(row.by_init["pretrained"].mean, table.metric)
            facts.append(Fact(f"{table.metric}, {table.name}".replace("_", " "), shown, note))
    if ledger.get("images_seen"):
        steps = f"{words.count(ledger['steps'])} steps"
        facts.append(Fact("images seen", words.magnitude(ledger["images_seen"]), steps))
    if ledger.get("images_per_second"):
        seconds = ledger["seconds"]["train"]
        rate = words.count(ledger["images_per_second"])
        facts.append(Fact("images/s", rate, f"{words.duration(seconds)} of training"))
    if prepared := ledger.get("prepared", {}).values():
        seconds = sum(one["seconds"] for one in prepared)
        total = words.duration(seconds + ledger["seconds"]["train"])
        note = f"preparation {cost(seconds, all(one['cached'] for one in prepared))}"
        facts.append(Fact("preparation and training", total, note))
    if ledger.get("peak_memory_bytes"):
        facts.append(Fact("peak memory", words.memory(ledger["peak_memory_bytes"])))
    return facts


def _guesses(accuracy: str, last: Mapping[str, float]) -> str:
    """What guessing reaches, on held-out images or else on those of training."""
    found = []
    for guess, label in words.GUESSES.items():
        name = f"{accuracy.rpartition('/')[0]}/{guess}"
        value = last.get(name, last.get(name.removeprefix("heldout/")))
        if value is not None:
            found.append(f"{label} {words.number(value, name)}")
    return ", ".join(found)


def _listed(items: Sequence[Mapping[str, Any]], worded: Callable[[Mapping[str, Any]], str]) -> str:
    """Counts and lists what was skipped; nothing skipped is said too."""
    if not items:
        return "none"
    shown = "; ".join(worded(item) for item in items[:MAX_LISTED])
    more = "; the others are in ledger.json" if len(items) > MAX_LISTED else ""
    return f"{len(items)}: {shown}{more}"
