import base64
import fcntl
import hashlib
import json
import math
import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from page_text import Elements, text_of
from PIL import Image

from mimkit.errors import DataError
from mimkit.evaluate.base import Result
from mimkit.folder import RunFolder
from mimkit.report.charts import cost_chart, pareto_front
from mimkit.report.embed import embedded
from mimkit.report.findings import Interval, Row, Verdicts
from mimkit.report.looks import looks
from mimkit.report.page import write_report
from mimkit.report.sheet import Column, contact_sheet
from mimkit.study.gather import gather
from mimkit.study.records import Budget, Method, Plan, Trial

METHODS = ("pointer", "codes", "aligned")
"""How well each does, and what it costs beside the first."""
GAINS = {"pointer": 0.065, "codes": 0.012, "aligned": 0.024}
WORK = {"pointer": 1.0, "codes": 1.5, "aligned": 2.1}
DEPTH = 4
CODES = {
    "title": "a dVAE <trained> on the training images",
    "seconds": 187.0,
    "flops": 2.5e12,
    "cached": True,
    "facts": {"codes": 512, "codes used": 401, "perplexity": 312.44},
}


def trial(label):
    return Trial(
        seconds_per_step=0.5 * WORK[label],
        flops_per_image=2.7e8 * WORK[label],
        peak_memory_bytes=1_728_090_112,
        prepare_seconds=0.0 if label == "pointer" else 187.0,
        prepared={},
        parameters={"encoder": 452_736, "head": 98_656, "frozen": 0, "trainable": 551_392},
        encode_seconds=0.001,
        train_seconds=0.004,
        fingerprint="f1d2d2f924e986ac",
        num_images=50_000,
        device="CPU x86_64, 2 threads",
    )


def make_plan(labels=METHODS, seeds=(0, 1, 2), steps=160):
    works = dict(zip(labels, METHODS, strict=False))
    return Plan(
        command="mimkit compare pointer codes aligned --dataset shapes --budget images=20k",
        dataset="shapes",
        budget=Budget("images", 128.0 * steps),
        seeds=seeds,
        methods=tuple(
            Method(
                label=label,
                reference=label,
                source=f"{works[label]}_cifar",
                batch_size=128,
                total_steps=steps,
                notes=("the data of it (cifar10) is replaced by shapes",),
                trial=trial(works[label]),
                evaluate_seconds=300.0,
            )
            for label in labels
        ),
        mimkit="0.1.0",
    )


def ledger(method, plan, seed):
    work = WORK[method.source.removesuffix("_cifar")]
    seconds = 81.3 * work + seed
    return {
        "command": "mimkit run",
        "mimkit": plan.mimkit,
        "torch": "2.6.0",
        "python": "3.11.7",
        "git_commit": "0123456789abcdef",
        "device": "CPU x86_64, 2 threads",
        "precision": "float32",
        "compiled": False,
        "dataset": {
            "name": "shapes",
            "fingerprint": "f1d2d2f924e986ac",
            "train_images": 50_000,
            "test_images": 10_000,
            "skipped": [{"path": "cat/broken.jpg", "reason": "zero bytes"}],
        },
        "parameters": {
            "encoder": 452_736,
            "head": round(98_656 * work**2),
            "targets": 0,
            "frozen": 239_630 if work > 1 else 0,
            "trainable": 452_736 + round(98_656 * work**2),
        },
        "steps": method.total_steps,
        "images_seen": method.images,
        "seconds": {"prepare": 0.02, "train": seconds, "evaluate": 240.0 + 9 * seed},
        "prepared": {"tokens": CODES | {"cached": seed > 0}} if work > 1 else {},
        "images_per_second": method.images / seconds,
        "peak_memory_bytes": round(1_728_090_112 * work**0.5),
        "flops_per_image": method.trial.flops_per_image,
        "skipped_steps": [{"step": 81, "index": [5, 17]}] if seed == 1 else [],
    }


def results(gain, term, seed):
    """What one run measures; ``gain`` is what pre-training is worth at few labels."""
    noise = 0.006 * math.sin(7 * seed + 100 * gain)
    found = [
        Result("heldout", f"loss/{term}", 4.2 - 9 * gain + noise, 1000, seed),
        Result("heldout", f"metric/{term}/accuracy", 0.1 + gain + noise, 1000, seed),
        Result("heldout", f"metric/{term}/majority", 0.012, 1000, seed),
    ]

    def measure(evaluator, values, protocol, chosen=None):
        images = 10**9  # so many that their choice adds nothing to the seeds' error
        found.extend(
            Result(evaluator, "accuracy", value, images, seed, start, protocol, chosen or {})
            for start, value in values.items()
        )

    frozen = {"pretrained": 0.372 + gain + noise, "random": 0.301 + noise / 2, "pixels": 0.402}
    measure("knn", frozen, {"k": 20, "pool": "mean", "num_labels": 10_000})
    for fraction, low in ((0.01, 0.33), (0.1, 0.44)):
        labels = {"label_fraction": fraction, "num_labels": round(50_000 * fraction)}
        for pool in ("mean", "cls"):
            probe = {**labels, "num_layers": DEPTH, "pool": pool, "weight_decays": "0.001, 0.1"}
            for layer in range(1, DEPTH + 1):
                bend = 0.05 * math.sin(layer * 0.9) + (0.01 if pool == "mean" else 0)
                values = {"pretrained": low + gain + bend + noise, "random": low - 0.02 * layer}
                measure("linear_probe", values, {**probe, "layer": layer})
            values = {"pretrained": low + gain + 0.05 + noise, "random": low, "pixels": low - 0.05}
            chosen = {"layer": 2 + seed % 2}
            measure("linear_probe", values, {**probe, "layer": "chosen on dev"}, chosen)
        values = {
            "pretrained": low + gain * (1.2 - fraction) + noise,
            "scratch": low + 0.004 * math.cos(5 * seed),
        }
        tuning = {**labels, "network": "backbone", "total_steps": 300, "lrs": "0.001, 0.003"}
        measure("finetune", values, tuning, {"lr": 0.003})
    return found


def log_training(folder, term, gain, seed, steps, every=4):
    with folder.metrics.open("w", encoding="utf-8") as file:
        for step in range(every, steps + 1, every):
            learnt = 1 - math.exp(-step / 60)
            wobble = 0.03 * math.sin(step * (seed + 1))
            values = {
                "step": step,
                f"loss/{term}": 4.9 - (0.4 + 9 * gain) * learnt + wobble,
                "loss/total": 4.9 - (0.4 + 9 * gain) * learnt + wobble,
                f"metric/{term}/accuracy": 0.02 + (0.08 + gain) * learnt + wobble / 20,
                f"metric/{term}/majority": 0.012,
                "grad_norm": 1.4,
                "time/step_ms": 500.0,
                "lr": 1e-3,
            }
            if step % (8 * every) == 0:
                values[f"heldout/loss/{term}"] = 4.95 - (0.4 + 9 * gain) * learnt
                values["knn/accuracy"] = 0.3 + (0.07 + gain) * learnt + wobble / 20
            file.write(json.dumps(values) + "\n")


def write_run(plan, method, seed, folder):
    name = method.source.removesuffix("_cifar")
    term = "patches" if name == "pointer" else "tokens"
    with RunFolder(folder / "runs" / method.label / str(seed), writable=True) as run:
        run.write_ledger(ledger(method, plan, seed))
        found = [asdict(result) for result in results(GAINS[name], term, seed)]
        run.write_results({"results": found, "summaries": [], "differences": []})
        log_training(run, term, GAINS[name], seed, method.total_steps)
        if name != "pointer":
            image = drawn(2)
            columns = [Column("original", image), Column("reconstruction", image)]
            about = "What the codes give back."
            contact_sheet(run.pictures / "prepared_tokens.png", columns, None, description=about)


def drawn(num_images):
    ramp = torch.linspace(0, 1, 32)
    image = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, torch.full((32, 32), 0.4)])
    return torch.stack([image.roll(n * 9, dims=-1) for n in range(num_images)])


def write_comparison(folder, plan, failed=()):
    """Writes the folder of a comparison in which all cells but the ``failed`` are finished."""
    listed = []
    for cell, method in (
        (cell, method)
        for cell in plan.cells
        for method in plan.methods
        if method.label == cell.method
    ):
        if (cell.method, cell.seed) in failed:
            reason = folder / "failed" / f"{cell.method}-{cell.seed}.txt"
            reason.parent.mkdir(exist_ok=True)
            reason.write_text(
                "step 31: the loss must be finite, but is nan <script>alert(1)</script>",
                encoding="utf-8",
            )
        else:
            write_run(plan, method, cell.seed, folder)
    for number, method in enumerate(plan.methods):
        file = folder / "pictures" / f"{number}.png"
        columns = [Column(f"{name} of it", drawn(6)) for name in ("image", "mask", "attention")]
        contact_sheet(file, columns, None, description="unused", column_width=192)
        about = f"Six images, half of each hidden, and what {method.label} makes of them."
        listed.append({"title": method.label, "file": file.name, "description": about})
    (folder / "pictures" / "manifest.json").write_text(json.dumps(listed), encoding="utf-8")
    recipes = folder / "recipes"
    recipes.mkdir()
    for method in plan.methods:
        text = f'name = "{method.label}"  # <b>&\n'
        (recipes / f"{method.label}.toml").write_text(text, encoding="utf-8")
    return gather(plan, folder)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    return write_comparison(folder, make_plan(), failed={("codes", 2)})


@pytest.fixture(scope="module")
def page(comparison):
    return write_report(comparison).read_text(encoding="utf-8")


def report_text(comparison):
    return text_of(write_report(comparison).read_text(encoding="utf-8"))


def described(page):
    """Every chart's description, which stands for what it shows."""
    found = [attributes for tag, attributes in Elements(page).found if tag == "figure"]
    return [f["aria-label"].replace("\u202f", " ") for f in found if f.get("role") == "img"]


def titled(page, start):
    return [text for text in described(page) if text.startswith(start)]


def test_the_page_asks_the_network_for_nothing_and_allows_only_its_own_script(page):
    for tag, attributes in Elements(page).found:
        assert tag not in ("iframe", "object", "embed", "form")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not re.search(r"https?://", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-" in page
    )
    assert f"'sha256-{digest}'" in page


def test_what_is_seen_is_described_and_ids_are_unique(page):
    elements = Elements(page).found
    assert all(attributes["alt"] for tag, attributes in elements if tag == "img")
    assert all(attributes.get("aria-label") for _, attributes in elements if attributes.get("role"))
    assert all(attributes.get("scope") for tag, attributes in elements if tag == "th")
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(described(page)) == 3 + 2 * 3 + 2 * 3 + 1 + 4


def test_the_cover_says_the_answer_the_budget_and_how_far_it_is(page, comparison):
    text = text_of(page)
    assert comparison.answer.replace("\u202f", " ") in text
    assert "20.5 k budget of every run" not in text
    assert "budget of every run 20.5 k 20,480 images seen" in text
    assert "runs finished 8 of 9" in text
    assert "mimkit 0.1.0, torch 2.6.0, Python 3.11.7, commit 0123456789abcdef" in text
    assert "training images 50,000" in text
    assert "fingerprint of the data f1d2d2f924e986ac" in text


def test_the_cover_says_what_is_equal_and_what_is_not(page):
    text = text_of(page)
    (equal,) = re.findall(r"equal the budget.*?\.", text)
    assert equal.endswith("images seen, optimizer steps, images of a step, encoder parameters.")
    (different,) = re.findall(r"not equal (head.*?\)) \.", text)
    assert "head parameters (× 4.41) , frozen parameters (none in some)" in different
    assert "time of preparation (none in some)" in different
    assert "encoder parameters" not in different
    assert "FLOPs of pre-training 5.53 TFLOP 8.29 TFLOP 11.6 TFLOP × 2.1" in text
    assert "FLOPs of preparation none 2.5 TFLOP 2.5 TFLOP none in some" in text
    assert "FLOPs of both 5.53 TFLOP 10.8 TFLOP 14.1 TFLOP × 2.55" in text
    assert "time of pre-training 82.3 s 122 s 172 s × 2.09" in text
    assert "time of preparation none 187 s 187 s none in some" in text
    assert "what a published tokenizer once cost is not known" in text


def test_a_failed_run_is_named_with_its_reason(page):
    assert (
        "codes, seed 2 , failed: step 31: the loss must be finite, but is nan "
        "&lt;script&gt;alert(1)&lt;/script&gt;" in text_of(page)
    )


def test_runs_that_differ_in_their_device_are_told(comparison, tmp_path):
    first, *others = comparison.outcomes
    odd = replace(first, ledger={**first.ledger, "device": "H100"})
    bare = replace(comparison, folder=tmp_path, verdicts=(), outcomes=(odd, *others))
    text = report_text(bare)
    assert "device H100; CPU x86_64, 2 threads (differs between runs)" in text


def test_what_was_refused_is_named_once(comparison, tmp_path):
    failed = comparison.outcomes[-2]
    refused = (f"{failed.cell}: {failed.reason}", "knn accuracy: a and b are not compared")
    text = report_text(replace(comparison, folder=tmp_path, verdicts=(), refused=refused))
    assert "Refused, because it is not comparable: knn accuracy: a and b are not compared" in text
    assert text.count("the loss must be finite") == 1


def test_each_result_stands_with_its_interval_and_its_baselines(page):
    text = text_of(page)
    assert (
        "Fine-tuning accuracy 1 % 500 41.1 % ▲ 40.5 to 41.7 from scratch 33.1 % "
        "35.0 % 35.0 to 35.0 (n = 2) from scratch 33.3 % "
        "35.9 % ▲ 34.9 to 36.8 from scratch 33.1 % 1. pointer 2. aligned ≈ codes" in text
    )
    assert "44.1 % ▲ 43.5 to 44.7 random weights 30.3 % raw pixels 40.2 %" in text
    assert "Linear probe accuracy pool cls 10 % 5,000" in text
    assert "layer chosen on dev" in text  # among the settings, as all rows share it


def test_first_place_is_marked_only_where_the_data_allow_a_ranking(comparison, page, tmp_path):
    assert page.count('<td class="first"') == 7
    muddled = tuple(replace(found, ranking=None) for found in comparison.verdicts)
    path = write_report(replace(comparison, folder=tmp_path, verdicts=muddled))
    text = path.read_text(encoding="utf-8")
    assert '<td class="first"' not in text
    assert text.count("none at n = 2") == 7


def test_pairs_and_gains_say_how_sure_they_are(page):
    text = text_of(page)
    assert "pointer − codes +5.0 +2.8 to +7.3 0.044 better 2" in text
    assert "codes − aligned −0.8 −3.4 to +1.7 0.146 not distinguishable at n=2 4" in text
    assert "pointer − from scratch +8.1 +6.6 to +9.6 0.002 better 2" in text
    assert "pointer − random weights +11.9 +11.3 to +12.5 &lt; 0.001 better" in text


def test_accuracy_against_labels_has_a_line_for_each_method_and_its_baseline(page):
    (text,) = titled(page, "Fine-tuning accuracy against labels")
    assert "pointer: 41.1 % at 1 % of the labels, 51.6 % at 10 % of the labels" in text
    assert "pointer from scratch: 33.1 % at 1 % of the labels" in text
    assert len(titled(page, "Linear probe accuracy against labels (pool ")) == 2


def test_accuracy_against_cost_marks_the_front(page):
    (text,) = titled(page, "Fine-tuning accuracy against time")
    assert "pointer: 41.1 % at 82.3 s, on the front" in text
    assert "codes: 35.0 % at 5 min. " in text
    assert "codes from scratch: 33.3 % at 0, on the front" in text
    (text,) = titled(page, "k-NN accuracy against FLOPs")
    assert "aligned: 39.6 % at 14.1 TFLOP. " in text  # 2.5 of them the tokenizer's


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(0, 0.3), (5, 0.4), (9, 0.35)], [0, 1]),
        ([(5, 0.2), (0, 0.3)], [1]),
        ([(0, 0.3), (5, 0.3)], [0]),
        ([(3, 0.5), (3, 0.6), (1, 0.1)], [2, 1]),
        ([(1, 0.5), (1, 0.5)], [0, 1]),
        ([], []),
    ],
)
def test_the_front_holds_what_none_beats(points, front):
    assert pareto_front(points) == front


def test_training_curves_are_one_chart_a_method_with_mean_over_seeds(page):
    (text,) = titled(page, "codes: loss")
    assert "over the images seen, 2 seeds: training ends at 4." in text
    assert "held-out ends at 4." in text
    (text,) = titled(page, "pointer: patches accuracy")
    assert "most frequent class is 1.2 %" in text
    (text,) = titled(page, "k-NN accuracy during pre-training")
    assert all(f"{label} ends at" in text for label in METHODS)
    assert "loss/tokens – 4.1 4.1 to 4.1 (n = 2) 3.98" in text_of(page)


def test_the_layers_that_were_chosen_are_said_and_the_numbers_can_be_read(page):
    (text,) = titled(page, "Linear probe accuracy by layer (1 % of the labels, pool mean)")
    assert "pointer: 44.8 % at layer 1, 38.7 % at layer 4, chosen 2, 3" in text
    assert "codes: 39.7 % at layer 1, 33.5 % at layer 4, chosen 2, 3" in text
    assert "pool mean), in % chosen 1 2 3 4 pointer 2, 3 44.8 45.8 43.0 38.7" in text_of(page)


def test_the_ledger_counts_what_was_skipped(page):
    text = text_of(page)
    assert "pointer 1 finished under 0.1 s 82.3 s 249 s 249 1.6 GiB 1 1" in text
    assert "codes 2 failed – – – – – – –" in text


def test_every_method_has_its_pictures(page):
    text = text_of(page)
    for label in METHODS:
        assert f"Six images, half of each hidden, and what {label} makes of them." in text
    assert page.count("<img") == 3 + 1


def test_a_manifest_names_only_files_beside_it(comparison, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    listed = [{"title": "x", "file": "../secret.png", "description": "y"}]
    assert "No pictures were drawn." in with_manifest(comparison, tmp_path, json.dumps(listed))


@pytest.mark.parametrize("manifest", ["not json", "[1]", '[{"title": "x"}]', "3"])
def test_a_damaged_manifest_is_named(comparison, tmp_path, manifest):
    with pytest.raises(DataError, match=r"manifest\.json: must list sheets with title"):
        with_manifest(comparison, tmp_path, manifest)


def with_manifest(comparison, tmp_path, manifest):
    folder = tmp_path / "comparison"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "manifest.json").write_text(manifest, encoding="utf-8")
    return report_text(replace(comparison, folder=folder, verdicts=(), outcomes=()))


@pytest.mark.slow
def test_pictures_that_are_too_large_are_left_out_and_the_page_stays_below_10_mb(
    comparison, tmp_path
):
    folder = tmp_path / "comparison"
    (folder / "pictures").mkdir(parents=True)
    listed = []
    for number, side in enumerate((300, 1800, 2400)):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{number}.png")
        listed.append({"title": f"sheet {number}", "file": f"{number}.png", "description": "noise"})
    (folder / "pictures" / "manifest.json").write_text(json.dumps(listed), encoding="utf-8")
    path = write_report(replace(comparison, folder=folder))
    assert path.stat().st_size < 10_000_000
    text = text_of(path.read_text(encoding="utf-8"))
    assert "Too large for this page, but in the folder of the comparison: pictures/2.png." in text
    assert "sheet 0 noise sheet 1 noise" in text


def test_of_too_many_pictures_the_largest_is_left_out_first(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, side in zip(paths, (30, 90, 60, 80), strict=True):
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    sizes = [path.stat().st_size for path in paths]
    assert list(embedded(paths, sum(sizes))) == paths
    assert list(embedded(paths, sum(sizes) - 1)) == [paths[0], paths[2], paths[3]]
    assert list(embedded(paths, sizes[0])) == [paths[0]]
    assert embedded(paths, 0) == {}


def test_a_picture_in_a_dense_format_is_embedded_as_it_is(tmp_path):
    path = tmp_path / "sheet.webp"
    Image.new("RGB", (320, 16)).save(path)
    (shown,) = embedded([path]).values()
    assert shown.source == "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()
    assert shown.width == 200


def test_a_shared_tokenizer_is_shown_once_with_its_users(page):
    cards = re.findall(r"<article class=\"card\">.*?</article>", page, flags=re.DOTALL)
    assert [text_of(card).strip() for card in cards] == [
        "a dVAE &lt;trained&gt; on the training images used by codes (seeds 0, 1); aligned "
        "(seeds 0, 1, 2) time 3 min codes 512 codes used 401 perplexity 312 "
        "What the codes give back."
    ]


def test_different_tokenizers_have_cards_of_their_own(comparison, tmp_path):
    def changed(outcome):
        if outcome.cell.method != "aligned":
            return outcome
        own = {"tokens": CODES | {"facts": {"codes": 64}}}
        return replace(outcome, ledger={**outcome.ledger, "prepared": own})

    outcomes = tuple(changed(outcome) for outcome in comparison.outcomes)
    text = report_text(replace(comparison, folder=tmp_path, verdicts=(), outcomes=outcomes))
    assert "used by codes (seeds 0, 1) time 3 min codes 512" in text
    assert "used by aligned (seeds 0, 1, 2) time 3 min, found in the cache codes 64" in text


def test_everything_can_be_repeated(page, comparison):
    text = text_of(page)
    assert comparison.command in text
    for outcome in comparison.outcomes:
        assert outcome.command in text
    assert "recipe codes_cifar the data of it (cifar10) is replaced by shapes" in text
    assert "The whole recipe of codes name = &#34;codes&#34; # &lt;b&gt;&amp;" in text


def test_names_and_reasons_are_text_and_nothing_else(tmp_path):
    label = "<img src=x onerror=alert(1)> & $a_1$"
    plan = make_plan(("pointer", label), seeds=(0, 1))
    path = write_report(write_comparison(tmp_path, plan, failed={(label, 1)}))
    page = path.read_text(encoding="utf-8")
    images = [attributes for tag, attributes in Elements(page).found if tag == "img"]
    assert all(attributes["src"].startswith("data:") for attributes in images)
    assert "<img src=x" not in page
    assert "alert(1)</script>" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; $a_1$" in page


def test_a_method_whose_name_begins_with_an_underscore_is_in_the_legend(tmp_path):
    path = write_report(write_comparison(tmp_path, make_plan(("pointer", "_own"), seeds=(0,))))
    figures = re.findall(r"<svg.*?</svg>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert sum("\u2060_own</text>" in figure for figure in figures) == 3 + 6 + 1 + 4


def test_before_any_run_has_finished_the_plan_speaks(tmp_path):
    text = report_text(gather(make_plan(), tmp_path))
    assert "No run has finished yet" in text
    assert "codes: no run has finished, so these are the estimates of the plan." in text
    assert "FLOPs per image 270 MFLOP 405 MFLOP 567 MFLOP" in text
    assert "aligned, seed 2 , missing: not run to its end yet" in text
    assert "No evaluation that compares the methods has finished yet." in text
    assert "No pictures were drawn." in text
    Elements((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_one_seed_has_no_intervals(page_of_one_seed):
    text = text_of(page_of_one_seed)
    assert "pointer − codes +" in text
    assert "– – one seed: no interval –" in text
    assert "(n = 1)" not in text


def test_a_baseline_that_all_methods_share_is_drawn_once(page_of_one_seed):
    page = page_of_one_seed
    (text,) = titled(page, "Linear probe accuracy by layer (1 % of the labels, pool mean)")
    assert ". random weights: 31.0 % at layer 1, 25.0 % at layer 4" in text
    assert "pointer random weights" not in text
    (text,) = titled(page, "Linear probe accuracy against FLOPs")
    assert ". random weights: 33.0 % at 0, on the front" in text


@pytest.fixture(scope="module")
def page_of_one_seed(tmp_path_factory):
    plan = make_plan(("pointer", "codes"), seeds=(5,))
    comparison = write_comparison(tmp_path_factory.mktemp("one"), plan)
    return write_report(comparison).read_text(encoding="utf-8")


@pytest.mark.slow
def test_many_seeds_and_long_logs_still_give_a_small_page(tmp_path):
    plan = make_plan(("pointer", "codes"), seeds=tuple(range(12)), steps=8000)
    assert write_report(write_comparison(tmp_path, plan)).stat().st_size < 1_500_000


def test_wide_intervals_do_not_squash_the_means():
    means = {
        ("pointer", "pretrained"): Interval(0.22, -0.6, 1.04, 2),
        ("codes", "pretrained"): Interval(0.20, 0.18, 0.22, 2),
    }
    row = Row("knn", "accuracy", {}, {})
    found = Verdicts(row, means, (), (), None)
    chart = cost_chart(found, {"pointer": 40.0, "codes": 80.0}, "s", looks(["pointer", "codes"]))
    ticks = [float(tick) for tick in re.findall(r">([\d.]+) %</text>", chart.svg)]
    assert len(ticks) > 3
    assert 17 <= min(ticks) < 19
    assert 22 < max(ticks) <= 25


def test_methods_are_told_apart_without_colour():
    found = looks(str(number) for number in range(42)).values()
    assert len(set(found)) == 42
    assert len({look.marker for look in list(found)[:7]}) == 7


def test_the_same_files_give_the_same_page(comparison, page):
    assert write_report(comparison).read_text(encoding="utf-8") == page


class Browser:
    """A headless Chromium, spoken to through its debugging pipe; every request is written down."""

    def __init__(self, program, profile):
        # Chromium reads from descriptor 3 and writes to 4.
        theirs, self.write = self._pipe()
        self.read, back = self._pipe()
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$@" 3<&{theirs} 4>&{back}',
                "bash",
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(theirs, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(back)
        self.number, self.buffer, self.session, self.events = 0, b"", None, []
        (target,) = [
            one["targetId"]
            for one in self.call("Target.getTargets")["targetInfos"]
            if one["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    @staticmethod
    def _pipe():
        ends = os.pipe()
        high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends)
        for end in ends:
            os.close(end)
        return high

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        deadline = time.monotonic() + 60
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            read = os.read(self.read, 1 << 20)
            assert read, "the browser has ended"
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width=1100, height=900, dark=False, script=True):
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        if script:  # whatever the page still complains about comes before this answer
            self.evaluate(
                "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))"
            )

    def evaluate(self, script):
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, code):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text="\r" if kind == "keyDown" and key == "Enter" else "",
            )

    def named(self, *methods):
        return [event["params"] for event in self.events if event["method"] in methods]

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def shown(comparison, page):
    path = comparison.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def column(browser, table, number):
    """The sort keys of one column, from the top."""
    script = f"""[...document.querySelector('table[aria-label="{table}"]').tBodies[0].rows].map(
        (row) => row.cells[{number}].dataset.sort ?? row.cells[{number}].textContent.trim())"""
    return browser.evaluate(script)


def header(table, number):
    return (
        f"""document.querySelector('table[aria-label="{table}"]').tHead.rows[0].cells[{number}]"""
    )


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (1100, True), (390, False)])
def test_a_browser_shows_it_without_a_complaint_or_a_request(browser, shown, width, dark):
    browser.open(shown, width=width, dark=dark)
    complaints = browser.named(
        "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"
    )
    assert complaints == []
    asked = [event["request"]["url"] for event in browser.named("Network.requestWillBeSent")]
    outside = [url for url in asked if not url.startswith("data:")]
    assert outside == [shown.as_uri()]
    widths = browser.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 0
    # A phone scrolls wide tables inside their region, never the page.
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")


@pytest.mark.browser
def test_wide_tables_scroll_in_their_region_on_a_phone(browser, shown):
    browser.open(shown, width=390)
    scrolled = browser.evaluate(
        """[...document.querySelectorAll('.wide')].map((region) => {
            region.scrollLeft = 60;
            return [region.getAttribute('aria-label'), region.tabIndex, region.scrollLeft];
        })"""
    )
    by_name = {name: (tab, left) for name, tab, left in scrolled}
    for name in ("results", "pairs of methods", "cost of every run"):
        assert by_name[name] == (0, 60)


@pytest.mark.browser
def test_a_click_on_a_header_sorts_numbers_by_value(browser, shown):
    browser.open(shown)
    before = column(browser, "results", 2)
    assert before != sorted(before, key=float, reverse=True)
    browser.evaluate(f"{header('results', 2)}.querySelector('button').click()")
    assert column(browser, "results", 2) == sorted(before, key=float, reverse=True)
    assert browser.evaluate(f"{header('results', 2)}.getAttribute('aria-sort')") == "descending"
    browser.evaluate(f"{header('results', 2)}.querySelector('button').click()")
    assert column(browser, "results", 2) == sorted(before, key=float)
    assert browser.evaluate(f"{header('results', 2)}.getAttribute('aria-sort')") == "ascending"
    browser.evaluate(f"{header('results', 0)}.querySelector('button').click()")
    assert browser.evaluate(f"{header('results', 2)}.hasAttribute('aria-sort')") is False
    names = column(browser, "results", 0)
    assert names[0].startswith("Fine-tuning")
    assert names[-1].startswith("Linear probe")


@pytest.mark.browser
def test_what_has_no_number_stays_last_both_ways(browser, shown):
    browser.open(shown)
    for _ in range(2):
        browser.evaluate(f"{header('cost of every run', 4)}.querySelector('button').click()")
        keys = column(browser, "cost of every run", 4)
        assert keys[-1] == ""
        assert "" not in keys[:-1]


@pytest.mark.browser
def test_the_keyboard_sorts_too(browser, shown):
    browser.open(shown)
    focused = f"{header('pairs of methods', 3)}.querySelector('button')"
    browser.evaluate(f"{focused}.focus()")
    assert browser.evaluate(f"document.activeElement === {focused}")
    browser.press("Enter", 13)
    keys = [float(key) for key in column(browser, "pairs of methods", 3)]
    assert keys == sorted(keys, reverse=True)


@pytest.mark.browser
def test_without_script_the_tables_are_whole_and_show_no_dead_buttons(browser, shown):
    browser.open(shown, script=False)
    root = browser.call("DOM.getDocument", depth=1)["root"]["nodeId"]

    def count(selector):
        found = browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)
        return len(found["nodeIds"])

    assert count("table.sortable tbody tr") == 7 + 21 + 21 + 9
    assert count("table.sortable button") == 0


@pytest.mark.browser
def test_it_prints_with_everything_unfolded(browser, shown):
    browser.open(shown)
    printed = browser.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
    assert base64.b64decode(printed["data"]).startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    try:
        heights = browser.evaluate(
            "[...document.querySelectorAll('details > :not(summary)')].map((e) => e.offsetHeight)"
        )
        widest = browser.evaluate(
            "Math.max(...[...document.querySelectorAll('.wide')].map((e) => e.scrollWidth))"
        )
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])
    assert min(heights) > 0
    assert widest <= 1100
