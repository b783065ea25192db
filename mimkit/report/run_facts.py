"""What a page says of a single run beside its findings: setting, progress, facts, skipped."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mimkit import words
from mimkit.folder import is_whole
from mimkit.report.cards import cost
from mimkit.report.entries import Entry
from mimkit.report.findings import Study
from mimkit.report.wording import BASELINES

MAX_LISTED: Final = 10
PARTS: Final = ("masker", "encoder", "targets", "head", "losses")


@dataclass(frozen=True)
class Fact:
    """One number worth seeing first."""

    label: str
    value: str
    note: str = ""


def setting(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
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
    if train.get("start_from"):
        setting.append(("begins with", str(train["start_from"])))
    if train.get("extended"):
        setting.append(("extended at", f"{', '.join(map(words.count, train['extended']))} steps"))
    return setting


def unfinished(
    rows: Sequence[Mapping[str, float]], recipe: Mapping[str, Any], ledger: Mapping[str, Any]
) -> str | None:
    """Says what is still missing, so that half a run is not read as a whole one."""
    if is_whole(ledger):
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


def facts(
    study: Study, entries: Iterable[Entry], rows: Sequence[Mapping[str, float]]
) -> list[Fact]:
    """The numbers of a run that are worth seeing first.

    Args:
        study: the run.
        entries: its results.
        rows: its log.
    """
    (outcome,) = study.outcomes
    return [*_of_task(study, rows), *_of_results(entries), *_of_ledger(outcome.ledger)]


def _of_task(study: Study, rows: Sequence[Mapping[str, float]]) -> list[Fact]:
    last = {name: value for row in rows for name, value in row.items()}
    # What was measured at the end counts more than what was logged on the way.
    for found in study.verdicts:
        for (_, start), mean in found.means.items():
            if found.row.own_task and start == "pretrained":
                last[f"{found.row.evaluator}/{found.row.metric}"] = mean.mean
    label = "pre-training task, accuracy on held-out images"
    return [
        Fact(label, words.number(value, name), _guesses(name, last))
        for name, value in last.items()
        if name.startswith("heldout/metric/") and name.endswith("accuracy")
    ]


def _of_results(entries: Iterable[Entry]) -> list[Fact]:
    """Accuracies with all labels; those with fewer stand in the table and its chart."""
    shown = list(entries)
    by_labels = {(e.name, e.apart) for e in shown if e.fraction is not None and e.fraction < 1}
    found = []
    for entry in shown:
        metric = entry.found.row.metric
        means = {start: mean.mean for (_, start), mean in entry.found.means.items()}
        if metric == "accuracy" and "pretrained" in means:
            if (entry.name, entry.apart) in by_labels:
                continue
            note = ", ".join(
                f"{name} {words.number(means[start], metric)}"
                for start, name in BASELINES.items()
                if start in means
            )
            label = ", ".join(filter(None, (entry.name, entry.apart)))
            found.append(Fact(label, words.number(means["pretrained"], metric), note))
    return found


def _of_ledger(ledger: Mapping[str, Any]) -> list[Fact]:
    found = []
    if ledger.get("images_seen"):
        steps = f"{words.count(ledger['steps'])} steps"
        found.append(Fact("images seen", words.magnitude(ledger["images_seen"]), steps))
    if ledger.get("images_per_second"):
        seconds = ledger["seconds"]["train"]
        rate = words.count(ledger["images_per_second"])
        found.append(Fact("images/s", rate, f"{words.duration(seconds)} of training"))
    if prepared := ledger.get("prepared", {}).values():
        seconds = sum(one["seconds"] for one in prepared)
        total = words.duration(seconds + ledger["seconds"]["train"])
        note = f"preparation {cost(seconds, all(one['cached'] for one in prepared))}"
        found.append(Fact("preparation and training", total, note))
    if ledger.get("peak_memory_bytes"):
        found.append(Fact("peak memory", words.memory(ledger["peak_memory_bytes"])))
    return found


def _guesses(accuracy: str, last: Mapping[str, float]) -> str:
    """What guessing reaches, on held-out images or else on those of training."""
    found = []
    for guess, label in words.GUESSES.items():
        name = f"{accuracy.rpartition('/')[0]}/{guess}"
        value = last.get(name, last.get(name.removeprefix("heldout/")))
        if value is not None:
            found.append(f"{label} {words.number(value, name)}")
    return ", ".join(found)


def skipped(ledger: Mapping[str, Any]) -> tuple[str, str]:
    """Which images and which steps a run has skipped, in words."""
    return (
        _listed(
            ledger.get("dataset", {}).get("skipped", []),
            lambda item: f"{item.get('path', item.get('index'))} ({item.get('reason')})",
        ),
        _listed(
            ledger.get("skipped_steps", []),
            lambda item: f"step {item['step']} (images {', '.join(map(str, item['index']))})",
        ),
    )


def _listed(items: Sequence[Mapping[str, Any]], worded: Callable[[Mapping[str, Any]], str]) -> str:
    """Counts and lists what was skipped; nothing skipped is said too."""
    if not items:
        return "none"
    shown = "; ".join(worded(item) for item in items[:MAX_LISTED])
    more = "; the others are in ledger.json" if len(items) > MAX_LISTED else ""
    return f"{len(items)}: {shown}{more}"
