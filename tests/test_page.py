import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mimkit.errors import DataError
from mimkit.evaluate.base import Result
from mimkit.evaluate.statistics import summarise
from mimkit.folder import RunFolder
from mimkit.parts.records import Grid, Mask
from mimkit.report.of_run import answer, tables, tally
from mimkit.report.page import write_report
from mimkit.report.sheet import Column, contact_sheet, masked_input

RECIPE = """\
name = "tiny_shapes"
seed = 3

[data]
name = "shapes"
image_size = [32, 32]
patch_size = 8

[masker]
part = "random"
mask_ratio = 0.25

[encoder]
part = "small"

[targets.patches]
part = "latent"

[head]
part = "reader"

[losses.patches]
part = "choice"

[train]
total_steps = 2000
batch_size = 128
"""


def summary(evaluator, metric, protocol, init, mean, std, seeds=3):
    values = [mean - std, mean, mean + std][:seeds] if seeds > 1 else [mean]
    return {
        "evaluator": evaluator,
        "metric": metric,
        "protocol": protocol,
        "init": init,
        "mean": mean,
        "std": std if seeds > 1 else None,
        "seeds": list(range(seeds)),
        "values": values,
    }


def difference(evaluator, metric, protocol, mean, low, high, verdict, seeds=3):
    return {
        "evaluator": evaluator,
        "metric": metric,
        "protocol": protocol,
        "mean": mean,
        "low": low,
        "high": high,
        "level": 0.95,
        "seeds": list(range(seeds)),
        "verdict": verdict,
    }


def finetune_results():
    summaries, differences = [], []
    for fraction, scratch, gain, half, verdict in (
        (0.05, 0.412, 0.031, 0.012, "better"),
        (0.08, 0.497, 0.018, 0.022, "not distinguishable at n=3"),
        (0.2, 0.641, 0.004, 0.011, "not distinguishable at n=3"),
        (1.0, 0.883, -0.006, 0.004, "worse"),
    ):
        protocol = {
            "network": "whole",
            "label_fraction": fraction,
            "num_labels": round(50_000 * fraction),
            "total_steps": 600,
        }
        summaries += [
            summary("finetune", "accuracy", protocol, "scratch", scratch, 0.008),
            summary("finetune", "accuracy", protocol, "pretrained", scratch + gain, 0.006),
        ]
        differences.append(
            difference("finetune", "accuracy", protocol, gain, gain - half, gain + half, verdict)
        )
    for evaluator, protocol, base, ours in (
        ("knn", {"k": 20, "distance": "cosine"}, 0.301, 0.372),
        ("linear_probe", {"features": "mean"}, 0.352, 0.447),
    ):
        summaries += [
            summary(evaluator, "accuracy", protocol, "random", base, 0.0, seeds=1),
            summary(evaluator, "accuracy", protocol, "pretrained", ours, 0.0, seeds=1),
        ]
        summaries.append(summary(evaluator, "accuracy", protocol, "pixels", 0.402, 0.0, seeds=1))
        differences.append(
            difference(
                evaluator,
                "accuracy",
                protocol,
                ours - base,
                None,
                None,
                "one seed: no interval",
                seeds=1,
            )
        )
    for metric, value in (("loss/patches", 1.21), ("metric/patches/accuracy", 0.398)):
        summaries.append(summary("heldout", metric, {}, "pretrained", value, 0.0, seeds=1))
    return {"results": [], "summaries": summaries, "differences": differences}


LEDGER = {
    "command": "mimkit run recipes/tiny_shapes.toml --seed 3",
    "mimkit": "0.1.0",
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
    "grid": "4 x 4 patches of 8 px",
    "parameters": {"encoder": 8_529_984, "head": 16_562_048, "targets": 0, "trainable": 25_092_032},
    "steps": 2000,
    "images_seen": 256_000,
    "seconds": {"prepare": 0.4, "train": 1312.0, "evaluate": 2041.5},
    "images_per_second": 195.1,
    "peak_memory_bytes": 2_411_724_800,
    "flops_per_image": 4.1e9,
    "skipped_steps": [{"step": 812, "index": [5, 17, 40]}],
    "notes": [],
}


def log_training(folder, steps=2000):
    for step in range(50, steps + 1, 50):
        learnt = 1 - math.exp(-step / 700)
        wobble = 0.01 * math.sin(step)
        values = {
            "loss/total": 1.386 - 0.4 * learnt + wobble,
            "loss/patches": 1.386 - 0.4 * learnt + wobble,
            "metric/patches/accuracy": 0.25 + 0.18 * learnt + wobble,
            "metric/patches/chance": 0.25,
            "grad_norm": 3 * math.exp(-step / 900) + 0.4 + abs(wobble),
            "time/step_ms": 656.0,
            "lr": 0.05 * (1 + math.cos(math.pi * step / 2000)),
        }
        folder.log(step, values)
        if step % 250 == 0:
            heldout = {
                "heldout/loss/patches": 1.386 - 0.36 * learnt,
                "heldout/metric/patches/accuracy": 0.25 + 0.155 * learnt,
            }
            folder.log(step, heldout)


def draw(folder):
    image = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(4, 16, dtype=torch.bool)
    masked[:, [1, 6, 11]] = True
    mask = Mask.drop(masked, Grid(4, 4, 8))
    correct = torch.tensor([True, False, True]).expand(4, 1, 3)
    columns = [
        Column("image", image),
        Column("what the encoder sees", masked_input(image, mask)),
        Column("choice", image, correct),
    ]
    contact_sheet(
        folder.pictures / "predictions.png", columns, mask, description="Held-out <images>."
    )


def finished_run(path):
    with RunFolder(path, writable=True) as folder:
        folder.recipe.write_text(RECIPE, encoding="utf-8")
        folder.write_results(finetune_results())
        folder.write_ledger(LEDGER)
        log_training(folder)
        draw(folder)
    return folder


@pytest.fixture
def finished(tmp_path):
    return finished_run(tmp_path / "run")


class Elements(HTMLParser):
    """Collects start tags, and checks that they are closed in order."""

    VOID = frozenset({"meta", "link", "img", "path", "use"})

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def text_of(page):
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)).replace("\u202f", " ")


def report_text(folder):
    return text_of(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_asks_the_network_for_nothing(finished):
    page = write_report(finished).read_text(encoding="utf-8")
    for tag, attributes in Elements(page).found:
        assert tag != "script"
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not re.search(r"https?://", page)


def test_every_picture_and_plot_is_described_and_every_heading_cell_has_a_scope(finished):
    elements = Elements(write_report(finished).read_text(encoding="utf-8")).found
    images = [attributes for tag, attributes in elements if tag == "img"]
    plots = [attributes for tag, attributes in elements if attributes.get("role") == "img"]
    assert len(images) == 1
    assert len(plots) == 5
    assert all(attributes["alt"] for attributes in images)
    assert all(attributes["aria-label"] for attributes in plots)
    assert all(attributes.get("scope") for tag, attributes in elements if tag == "th")
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_answer_speaks_for_the_smallest_fraction_with_its_interval(finished):
    assert (
        "Pre-training raises finetune accuracy at 5 % of the labels by 3.1 points "
        "(95 % interval +1.9 to +4.3, n = 3 seeds): better." in report_text(finished)
    )


def test_an_interval_that_holds_zero_only_changes():
    results = finetune_results()
    results["differences"][0] |= {"low": -0.003, "verdict": "not distinguishable at n=3"}
    sentence = answer(tables(results)).replace("\u202f", " ")
    assert sentence == (
        "Pre-training changes finetune accuracy at 5 % of the labels by +3.1 points "
        "(95 % interval \u22120.3 to +4.3, n = 3 seeds): not distinguishable at n=3."
    )


def test_a_single_seed_gives_no_interval():
    results = finetune_results()
    results["differences"] = results["differences"][-1:]
    assert answer(tables(results)) == (
        "Pre-training changes linear_probe accuracy by +9.5 points (one seed: no interval)."
    )


def test_all_evaluations_are_counted():
    assert tally(tables(finetune_results())) == (
        "Over all 6 comparisons with a baseline: better in 1, worse in 1, not distinguishable in "
        "2, without an interval 2."
    )


def test_the_label_table_holds_both_sides_in_percent(finished):
    text = report_text(finished)
    assert "5 % 2,500 41.2 % ± 0.8 44.3 % ± 0.6 +3.1 +1.9 to +4.3 better" in text
    assert "100 % 50,000 88.3 % ± 0.8 87.7 % ± 0.6 \u22120.6 \u22121.0 to \u22120.2 worse" in text
    assert "network whole, total steps 600" in text


def test_protocols_that_differ_at_one_fraction_get_tables_of_their_own():
    summaries = [
        summary("finetune", "accuracy", protocol, "pretrained", 0.5, 0.01)
        for network in ("whole", "pooled")
        for fraction, steps in ((0.05, 100), (0.2, 400))
        for protocol in [{"network": network, "label_fraction": fraction, "total_steps": steps}]
    ]
    found = tables({"results": [], "summaries": summaries, "differences": []})
    assert [table.protocol for table in found] == ["network whole", "network pooled"]
    for table in found:
        assert [(row.fraction, row.detail) for row in table.rows] == [
            (0.05, "total steps 100"),
            (0.2, "total steps 400"),
        ]


def test_two_plots_of_one_metric_share_no_ids(finished):
    results = finetune_results()
    for entry in [*results["summaries"], *results["differences"]]:
        if entry["evaluator"] == "finetune":
            copy = entry | {"protocol": entry["protocol"] | {"network": "pooled"}}
            results["summaries" if "init" in entry else "differences"].append(copy)
    finished.results.write_text(json.dumps(results), encoding="utf-8")
    elements = Elements(write_report(finished).read_text(encoding="utf-8")).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_single_fraction_has_a_table_but_no_plot(finished):
    results = finetune_results()
    results["summaries"] = results["summaries"][:2]
    results["differences"] = results["differences"][:1]
    finished.results.write_text(json.dumps(results), encoding="utf-8")
    text = report_text(finished)
    assert "5 % 2,500 41.2 % ± 0.8" in text
    assert "against labels" not in text


def test_probes_stand_beside_random_weights(finished):
    text = report_text(finished)
    assert (
        "knn accuracy k 20, distance cosine 30.1 % 40.2 % 37.2 % +7.1 \u2013 one seed: no interval"
        in text
    )


def test_every_baseline_stands_beside_the_first_numbers(finished):
    text = report_text(finished)
    assert "accuracy, knn 37.2 % random weights 30.1 %, raw pixels 40.2 %" in text


def test_the_final_held_out_accuracy_is_shown_with_chance(finished):
    label = "pre-training task, accuracy on held-out images"
    assert f"{label} 39.8 % chance 25.0 %" in report_text(finished)
    finished.results.unlink()
    assert f"{label} 39.6 % chance 25.0 %" in report_text(finished)


def test_the_held_out_accuracy_stands_beside_the_most_frequent_class_of_held_out_images(finished):
    results = finetune_results()
    for metric, value in (("accuracy", 0.132), ("majority", 0.041)):
        name = f"metric/codes/{metric}"
        results["summaries"].append(summary("heldout", name, {}, "pretrained", value, 0, seeds=1))
    finished.results.write_text(json.dumps(results), encoding="utf-8")
    with RunFolder(finished.path, writable=True) as folder:
        folder.log(2001, {"metric/codes/majority": 0.07})
    assert "held-out images 13.2 % most frequent class 4.1 %" in report_text(finished)


def prepare(folder, **changed):
    codes = {
        "title": "dVAE <trained> on these images",
        "seconds": 187.0,
        "cached": False,
        "facts": {"codes_used": 401, "perplexity": 312.44},
    }
    ledger = LEDGER | {"prepared": {"codes": codes | changed}}
    folder.ledger.write_text(json.dumps(ledger), encoding="utf-8")
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    columns = [Column("original", image), Column("reconstruction", image)]
    path = folder.pictures / "prepared_codes.png"
    contact_sheet(path, columns, None, description="What the codes give back.")


def test_what_was_prepared_is_a_card_with_cost_facts_and_picture(finished):
    prepare(finished)
    page = write_report(finished).read_text(encoding="utf-8")
    Elements(page)
    (card,) = re.findall(r"<article.*?</article>", page, flags=re.DOTALL)
    assert text_of(card).strip() == (
        "dVAE &lt;trained&gt; on these images target codes time 3 min codes used 401 "
        "perplexity 312 What the codes give back."
    )
    assert 'alt="What the codes give back."' in card
    assert page.count("What the codes give back.") == 2  # not among the general pictures
    assert page.count("<img") == 2


def test_a_preparation_is_part_of_the_cost_also_from_the_cache(finished):
    assert "preparation" not in report_text(finished)
    prepare(finished)
    assert "preparation and training 25 min preparation 3 min" in report_text(finished)
    prepare(finished, cached=True)
    text = report_text(finished)
    assert "preparation and training 25 min preparation 3 min, found in the cache" in text
    assert "time 3 min, found in the cache" in text


def test_a_picture_of_a_preparation_without_a_ledger_is_still_shown(finished):
    prepare(finished)
    finished.ledger.unlink()
    assert write_report(finished).read_text(encoding="utf-8").count("<img") == 2


def layer_results(seeds=2, pools=("mean", "cls")):
    results = [
        Result(
            "linear_probe",
            "accuracy",
            value + 0.002 * seed,
            100,
            seed,
            init,
            {"label_fraction": 1.0, "layer": layer, "num_layers": 2, "pool": pool},
            {"layer": 2} if isinstance(layer, str) else {},
        )
        for seed in range(seeds)
        for pool in pools
        for init, values in (("pretrained", (0.41, 0.52)), ("random", (0.33, 0.34)))
        for layer, value in zip((1, 2, "chosen on dev"), (*values, values[1]), strict=True)
    ]
    return {"results": [asdict(result) for result in results], **summarise(results)}


def test_layers_are_a_plot_and_a_row_for_each_pool_and_start(finished):
    finished.results.write_text(json.dumps(layer_results()), encoding="utf-8")
    page = write_report(finished).read_text(encoding="utf-8")
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = text_of(page)
    assert "accuracy in % by layer chosen 1 2" in text
    assert "pre-trained, mean 2, 2 41.1 ± 0.1 52.1 ± 0.1" in text
    assert "random weights, cls 2, 2 33.1 ± 0.1 34.1 ± 0.1" in text
    assert page.count('class="chosen"') == 4
    assert page.count("Accuracy by layer (linear_probe)</h3>") == 1


def test_only_the_chosen_layer_stands_among_the_evaluations(finished):
    finished.results.write_text(json.dumps(layer_results()), encoding="utf-8")
    text = report_text(finished)
    assert "Pre-training raises linear_probe accuracy at 100 % of the labels by 18.0 points" in text
    assert text.count("layer chosen on dev, num layers 2, pool mean") == 1
    assert "layer 1," not in text
    for pool in ("mean", "cls"):
        assert f"accuracy, linear probe, pool {pool} 52.1 % random weights 34.1 %" in text


def test_a_single_layer_has_a_table_but_no_plot(finished):
    results = layer_results(seeds=1, pools=("mean",))
    for part in ("results", "summaries", "differences"):
        results[part] = [entry for entry in results[part] if entry["protocol"]["layer"] != 1]
    finished.results.write_text(json.dumps(results), encoding="utf-8")
    text = report_text(finished)
    assert "pre-trained, mean 2 52.0" in text
    assert "Accuracy by layer" not in text


def test_the_ledger_lists_what_was_skipped(finished):
    text = report_text(finished)
    assert "1: cat/broken.jpg (zero bytes)" in text
    assert "1: step 812 (images 5, 17, 40)" in text
    assert "mimkit run recipes/tiny_shapes.toml --seed 3" in text


def test_what_comes_from_files_is_escaped(finished):
    page = write_report(finished).read_text(encoding="utf-8")
    assert "<images>" not in page
    assert "Held-out &lt;images&gt;." in page


def test_the_same_files_give_the_same_page(finished):
    first = write_report(finished).read_bytes()
    assert write_report(finished).read_bytes() == first


def test_an_empty_folder_says_that_nothing_was_logged(tmp_path):
    text = report_text(RunFolder(tmp_path))
    assert "This run has not logged a step yet." in text
    assert "There is no ledger yet" in text


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    with RunFolder(tmp_path, writable=True) as folder:
        folder.recipe.write_text(RECIPE, encoding="utf-8")
        log_training(folder, steps=400)
    assert (
        "This run is not finished: it has reached step 400 of 2,000, and has not been evaluated."
        in report_text(folder)
    )


def test_a_run_whose_evaluations_still_go_on_is_not_shown_as_whole(finished):
    notice = "Pre-training is done, but not every evaluation of the recipe: this is a part."
    assert notice not in report_text(finished)
    ledger = LEDGER | {"seconds": {"prepare": 0.4, "train": 1312.0}}
    finished.ledger.write_text(json.dumps(ledger), encoding="utf-8")
    assert notice in report_text(finished)


def test_a_run_without_evaluations_claims_nothing(finished):
    empty = {"results": [], "summaries": [], "differences": []}
    finished.results.write_text(json.dumps(empty), encoding="utf-8")
    text = report_text(finished)
    assert "so it does not tell what pre-training buys" in text
    assert "Pre-training raises" not in text


def test_pictures_beyond_the_budget_are_named_instead(finished, monkeypatch):
    monkeypatch.setattr("mimkit.report.embed.MAX_PICTURE_BYTES", 1000)
    text = report_text(finished)
    assert "Too large for this page, but in the run folder: pictures/predictions.png." in text


def test_a_large_picture_is_embedded_in_a_denser_format(finished, monkeypatch):
    monkeypatch.setattr("mimkit.report.embed.MAX_PNG_BYTES", 1000)
    assert "data:image/webp;base64," in write_report(finished).read_text(encoding="utf-8")


def test_a_long_run_still_gives_a_small_page(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.metrics.open("w", encoding="utf-8") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "loss/total": 1 / (step + 1), "lr": 0.1}) + "\n")
    assert write_report(folder).stat().st_size < 200_000


def test_a_damaged_recipe_is_named(finished):
    finished.recipe.write_text("name = ", encoding="utf-8")
    with pytest.raises(DataError, match=r"recipe\.toml: must be TOML"):
        write_report(finished)


def test_a_damaged_picture_is_named(finished):
    (finished.pictures / "torn.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"torn\.png: must be a picture"):
        write_report(finished)


@pytest.mark.browser
def test_a_browser_shows_it_without_a_complaint(finished, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    page: Path = write_report(finished)
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=390,1600",
            f"--screenshot={tmp_path / 'page.png'}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr
