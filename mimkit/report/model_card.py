"""The card of a model: what it is, on which images, how it was judged and what it cost.

It leaves the machine, so that it names no folder of it.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

import jinja2
import tomli_w
from huggingface_hub import EvalResult, ModelCardData

from mimkit import words
from mimkit.folder import RunFolder
from mimkit.parts.records import View
from mimkit.report.entries import Entry, entries, protocols
from mimkit.report.findings import Interval, Study
from mimkit.report.of_run import read_recipe, study
from mimkit.report.run_facts import setting, unfinished
from mimkit.report.wording import baseline_of, called, points, sure

UNKNOWN: Final = "unknown"
"""The Hub's word for a licence that nobody stated."""
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_EXPLAINED: Final = (
    "Means over seeds of the evaluation, with 95 % intervals for other seeds and other test images "
    "where there are at least two seeds. Differences are paired by seed and image. There is one "
    "pre-training: nothing here says how much another seed of it would change."
)


@dataclass(frozen=True)
class Subject:
    """The encoder that a card is about.

    Args:
        embed_dim: numbers a patch.
        view: size and normalisation of its images.
        channels: C.
    """

    embed_dim: int
    view: View
    channels: int


@dataclass(frozen=True)
class _Judged:
    """What was measured on one data set; ``name`` is "" for the run's own."""

    name: str
    rows: Sequence[Sequence[str]]
    protocols: Sequence[tuple[str, str, str]]


def model_card(folder: RunFolder, subject: Subject, where: str, license_: str) -> str:
    """Writes the card of a run's encoder from its results, ledger and recipe, as Markdown.

    Args:
        folder: the run's.
        subject: the encoder.
        where: what ``timm.create_model`` is given, ``"hf-hub:user/name"`` or
            ``"local-dir:FOLDER"``.
        license_: of the weights, as the Hub names it.

    Raises: DataError if one of the run's files is damaged.
    """
    found, recipe, ledger = study(folder), read_recipe(folder.recipe), folder.read_ledger()
    name, trained = where.partition(":")[2], bool(ledger.get("images_seen"))
    title = name if where.startswith("hf-hub:") else found.title
    height, width = subject.view.image_size
    body = _template().render(
        title=title,
        mimkit=found.mimkit,
        recipe_name=recipe.get("name", found.title),
        embed_dim=subject.embed_dim,
        trained=trained,
        unfinished=unfinished(folder.metrics_rows(), recipe, ledger) if trained else None,
        answer=found.answer,
        where=where,
        name=name,
        height=height,
        width=width,
        channels=subject.channels,
        mean=_numbers(subject.view.mean),
        std=_numbers(subject.view.std),
        setting=list(_setting(recipe)),
        images=_images(ledger, recipe),
        judged=[
            _judged(found, ""),
            *(_judged(one, public(one.dataset)) for one in found.judgements),
        ],
        explained=_EXPLAINED,
        cost=list(_cost(ledger)),
        recipe=tomli_w.dumps(_without_paths(recipe)).strip(),
    )
    return f"---\n{_metadata(found, title, license_).to_yaml()}\n---\n\n{body}"


def public(name: str) -> str:
    """Names data for strangers: a registered name or one of the Hub, of a path its last part.

    >>> public("cifar10"), public("/home/ann/leaves"), public("ylecun/mnist")
    ('cifar10', 'leaves', 'ylecun/mnist')
    """
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else PurePath(name).name


def _metadata(found: Study, title: str, license_: str) -> ModelCardData:
    """Says what the Hub sorts by."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=public(one.dataset),
            dataset_name=public(one.dataset),
            metric_type=entry.found.row.metric.rpartition("/")[2],
            metric_name=f"{called(entry.found.row)} {entry.detail}".strip(),
            metric_value=round(mean.mean, 4),
        )
        for one in (found, *found.judgements)
        for entry in entries(one.verdicts)
        if words.is_mean_of_images(entry.found.row.metric)
        and (mean := entry.found.means.get((one.labels[0], "pretrained"))) is not None
        and not words.is_guess(entry.found.row.metric)
    ]
    hub = [found.dataset] if "/" in public(found.dataset) else None
    return ModelCardData(
        license=license_,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "mimkit", "masked-image-modeling", "self-supervised"],
        datasets=hub,
        model_name=title,
        eval_results=results or None,
    )


def _judged(found: Study, name: str) -> _Judged:
    shown = entries(found.verdicts)
    rows = [row for entry in shown for row in _rows(entry, found.labels[0])]
    return _Judged(name, rows, protocols(shown) if rows else [])


def _rows(entry: Entry, label: str) -> Iterator[list[str]]:
    """Gives one line for what was measured, with its difference from a baseline if there is one."""
    row = entry.found.row
    mean = entry.found.means.get((label, "pretrained"))
    if mean is None or words.is_guess(row.metric):
        return
    title = ", ".join(filter(None, (called(row), entry.detail)))
    line = [title, _mean(mean, row.metric)]
    gains = [gain for gain in entry.found.gains if gain.first == label]
    for gain in gains:
        start = gain.second.removeprefix(f"{label} ")
        baseline = _mean(entry.found.means[label, start], row.metric)
        difference = points(gain.difference.mean, row.metric)
        surely = sure(gain.difference, row.metric)
        told = surely if gain.difference.low is None else f"{gain.verdict}: {surely}"
        yield [*line, baseline_of(gain), baseline, difference, told]
    if not gains:
        yield [*line, "", "", "", ""]


def _mean(mean: Interval, metric: str) -> str:
    text = words.number(mean.mean, metric)
    if mean.low is None or mean.high is None:
        return text
    return f"{text} ({words.number(mean.low, metric)} to {words.number(mean.high, metric)})"


def _setting(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    named = copy.deepcopy(dict(recipe))
    if "name" in named.get("data", {}):
        named["data"]["name"] = public(named["data"]["name"])
    yield from setting(named)
    if named.get("seed") is not None:
        yield "seed", str(named["seed"])


def _images(ledger: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Says what it was trained on; labels were for the evaluations alone."""
    found = ledger.get("dataset")
    if not found or not ledger.get("images_seen"):
        return "The weights come from elsewhere: what they were trained on is not known here."
    skipped = len(found.get("skipped", []))
    sentences = [
        f"{words.count(found['train_images'])} training images of `{public(found['name'])}`, "
        f"fingerprint `{found['fingerprint'][:16]}`, without labels; "
        f"{words.count(found['test_images'])} others were held out.",
        f"{words.count(skipped)} that could not be read were left out." if skipped else "",
        _augmented(recipe.get("augment", {})),
    ]
    if labelled := ledger.get("labelled"):
        sentences.append(f"Labels for the evaluations are those of `{public(labelled['name'])}`.")
    return " ".join(filter(None, sentences))


def _augmented(augment: Mapping[str, Any]) -> str:
    if not augment:
        return ""
    crops = {"none": "Whole images", "pad": "Crops of padded images", "resized": "Resized crops"}
    flips = ", half of them mirrored" if augment.get("flip") else ""
    return f"{crops.get(augment.get('crop', ''), 'Images')} were shown{flips}."


def _cost(ledger: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not ledger.get("images_seen"):
        return
    seconds, images = ledger.get("seconds", {}), ledger["images_seen"]
    prepared = sum(one["seconds"] for one in ledger.get("prepared", {}).values())
    yield "device", str(ledger.get("device", words.MISSING))
    yield "pre-training", f"{words.count(ledger['steps'])} steps, {words.count(images)} images"
    yield "time of pre-training", words.duration(seconds.get("train", 0.0))
    if prepared:
        yield "time of preparation", words.duration(prepared)
    if seconds.get("evaluate"):
        yield "time of evaluation", words.duration(seconds["evaluate"])
    if per_image := ledger.get("flops_per_image"):
        yield "FLOPs of pre-training", words.magnitude(per_image * images, "FLOP")
    if memory := ledger.get("peak_memory_bytes"):
        yield "peak memory", words.memory(memory)
    for part in ("encoder", "trainable"):
        if count := ledger.get("parameters", {}).get(part):
            yield f"{part} parameters", words.magnitude(count)


def _without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Copies a recipe without what says where files lie on the machine that ran it."""
    shown = copy.deepcopy(dict(recipe))
    data = shown.get("data", {})
    data.pop("path", None)
    for name in ("name", "labelled"):
        if isinstance(data.get(name), str):
            data[name] = public(data[name])
    return shown


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mimkit.report", "."),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=False,
    )
    return environment.get_template("model_card.md.j2")
