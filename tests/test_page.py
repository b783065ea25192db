import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from page_text import Elements, text_of

from mimkit.errors import DataError
from mimkit.evaluate.base import Result
from mimkit.evaluate.statistics import summarise
from mimkit.folder import RunFolder
from mimkit.parts.records import Grid, Mask
from mimkit.report import of_run
from mimkit.report import page as pages
from mimkit.report.answer import tally
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


IMAGES = 10**9
"""So many that their choice adds nothing to the seeds' error."""
HALF = 2.4841
"""Half of Student's interval of three seeds, as a multiple of their deviation."""


def measure(evaluator, metric, protocol, **by_init):
    """One result for each start and seed."""
    return [
        Result(evaluator, metric, value, IMAGES, seed, init, protocol)
        for init, values in by_init.items()
        for seed, value in enumerate(values)
    ]


def finetune_results(network="whole"):
    """Gains of which three have an interval as wide as is said."""
    found = []
    for fraction, scratch, gain, half in (
        (0.05, 0.412, 0.031, 0.012),
        (0.08, 0.497, 0.018, 0.022),
        (0.2, 0.641, 0.004, 0.011),
        (1.0, 0.883, -0.006, 0.004),
    ):
        protocol = {
            "network": network,
            "label_fraction": fraction,
            "num_labels": round(50_000 * fraction),
            "total_steps": 600,
        }
        base = [scratch + 0.008 * way for way in (-1, 0, 1)]
        ours = [
            value + gain - half / HALF * way for value, way in zip(base, (-1, 0, 1), strict=True)
        ]
        found += measure("finetune", "accuracy", protocol, scratch=base, pretrained=ours)
    return found


def all_results():
    found = finetune_results()
    for evaluator, protocol, base, ours in (
        ("knn", {"k": 20, "distance": "cosine"}, 0.301, 0.372),
        ("linear_probe", {"features": "mean"}, 0.352, 0.447),
    ):
        starts = {"random": [base], "pretrained": [ours], "pixels": [0.402]}
        found += measure(evaluator, "accuracy", protocol, **starts)
    for metric, value in (("loss/patches", 1.21), ("metric/patches/accuracy", 0.398)):
        found += measure("heldout", metric, {}, pretrained=[value])
    return found


def write(folder, results):
    tree = {"results": [asdict(result) for result in results], **summarise(results)}
    folder.results.write_text(json.dumps(tree), encoding="utf-8")


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
        write(folder, all_results())
        folder.write_ledger(LEDGER)
        log_training(folder)
        draw(folder)
    return folder


@pytest.fixture
def finished(tmp_path):
    return finished_run(tmp_path / "run")


def write_report(folder):
    return pages.write_report(of_run.study(folder))


def answer(folder):
    return of_run.study(folder).answer.replace("\u202f", " ")


def report_text(folder):
    return text_of(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_asks_the_network_for_nothing(finished):
    page = write_report(finished).read_text(encoding="utf-8")
    for tag, attributes in Elements(page).found:
        assert tag not in ("iframe", "object", "embed", "form")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert not re.search(r"https?://", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_every_picture_and_plot_is_described_and_every_heading_cell_has_a_scope(finished):
    elements = Elements(write_report(finished).read_text(encoding="utf-8")).found
    images = [attributes for tag, attributes in elements if tag == "img"]
    drawn = [(tag, attributes) for tag, attributes in elements if attributes.get("role") == "img"]
    plots = [attributes for tag, attributes in drawn if tag == "figure"]
    assert len(images) == 1
    assert len(plots) == 5
    assert all(attributes["alt"] for attributes in images)
    assert all(attributes["aria-label"] for _, attributes in drawn)
    assert all(attributes.get("scope") for tag, attributes in elements if tag == "th")
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_answer_speaks_for_the_smallest_fraction_and_counts_the_others(finished):
    assert (
        "At 256,000 images seen, in fine-tuning accuracy at 5 % of the labels, pre-training is "
        "better than training from scratch (+3.1 points, 95 % interval +1.9 to +4.3, n = 3 seeds); "
        "in other evaluations pre-training is better in 0 of 3 comparisons with a baseline and "
        "worse in 1 (pre-training in fine-tuning accuracy at 100 % of the labels: \u22120.6 "
        "points, 95 % interval \u22121.0 to \u22120.2, n = 3 seeds, over training from scratch)."
        in report_text(finished)
    )


def test_an_interval_that_holds_zero_decides_nothing(finished):
    protocol = {"label_fraction": 0.05}
    starts = {"scratch": [0.4, 0.41, 0.42], "pretrained": [0.46, 0.43, 0.40]}
    write(finished, measure("finetune", "accuracy", protocol, **starts))
    assert "pre-training cannot be told from training from scratch (+2.0 points" in answer(finished)


def test_a_single_seed_gives_no_interval(finished):
    write(finished, all_results()[-8:])
    assert answer(finished).startswith(
        "At 256,000 images seen, in linear probe accuracy, pre-training differs from frozen random "
        "weights by +9.5 points, one seed: no interval."
    )


def test_a_run_whose_images_are_not_known_names_no_budget(finished):
    finished.ledger.unlink()
    assert answer(finished).startswith("In fine-tuning accuracy at 5 % of the labels, pre-training")


def test_all_evaluations_are_counted(finished):
    assert tally(of_run.study(finished).verdicts) == (
        "Over all 6 comparisons with a baseline: better in 1, worse in 1, not distinguishable in "
        "2, without an interval 2."
    )


def test_the_table_holds_both_sides_in_percent_with_deviation_and_interval(finished):
    text = report_text(finished)
    assert (
        "Fine-tuning accuracy 5 % 2,500 44.3 % ± 0.3 ▲ 43.5 to 45.1 (n = 3) "
        "41.2 % ± 0.8 39.2 to 43.2 (n = 3) \u2013" in text
    )
    assert "5 % 2,500 pre-training \u2212 from scratch +3.1 +1.9 to +4.3 0.008 better 3" in text
    assert "100 % 50,000 pre-training \u2212 from scratch \u22120.6 \u22121.0 to \u22120.2" in text
    assert "network whole, total steps 600" in text
    assert "Over all 6 comparisons with a baseline: better in 1" in text


def test_a_setting_that_follows_from_the_fraction_leaves_one_chart(finished):
    write(
        finished,
        [
            result
            for network in ("whole", "pooled")
            for fraction, steps in ((0.05, 100), (0.2, 400))
            for protocol in [{"network": network, "label_fraction": fraction, "total_steps": steps}]
            for result in measure("finetune", "accuracy", protocol, pretrained=[0.5, 0.51])
        ],
    )
    text = report_text(finished)
    assert "Fine-tuning accuracy network whole, total steps 100 5 %" in text
    for network in ("whole", "pooled"):
        assert text.count(f"Fine-tuning accuracy against labels (network {network})") == 1


def test_two_plots_of_one_metric_share_no_ids(finished):
    write(finished, [*all_results(), *finetune_results("pooled")])
    elements = Elements(write_report(finished).read_text(encoding="utf-8")).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_single_fraction_has_a_table_but_no_plot(finished):
    write(finished, finetune_results()[:6])
    text = report_text(finished)
    assert "5 % 2,500 44.3 % ± 0.3" in text
    assert "against labels" not in text


def test_probes_stand_beside_random_weights(finished):
    text = report_text(finished)
    assert "k-NN accuracy \u2013 37.2 % one seed \u2013 30.1 % one seed 40.2 % one seed" in text
    assert "\u2212 random weights +7.1 \u2013 \u2013 one seed: no interval" in text
    assert "k-NN accuracy k 20, distance cosine" in text


def test_every_baseline_stands_beside_the_first_numbers(finished):
    text = report_text(finished)
    assert "k-NN accuracy 37.2 % random weights 30.1 %, raw pixels 40.2 %" in text


def test_the_final_held_out_accuracy_is_shown_with_chance(finished):
    label = "pre-training task, accuracy on held-out images"
    assert f"{label} 39.8 % chance 25.0 %" in report_text(finished)
    finished.results.unlink()
    assert f"{label} 39.6 % chance 25.0 %" in report_text(finished)


def test_the_held_out_accuracy_stands_beside_the_most_frequent_class_of_held_out_images(finished):
    results = all_results()
    for metric, value in (("accuracy", 0.132), ("majority", 0.041)):
        results += measure("heldout", f"metric/codes/{metric}", {}, pretrained=[value])
    write(finished, results)
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
    (card,) = re.findall(r'<article class="card">.*?</article>', page, flags=re.DOTALL)
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
    return [
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


def test_layers_are_a_plot_for_each_pool_and_a_row_for_each_start(finished):
    write(finished, layer_results())
    page = write_report(finished).read_text(encoding="utf-8")
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    text = text_of(page)
    title = "Linear probe accuracy by layer (100 % of the labels, pool {})"
    for pool in ("mean", "cls"):
        assert f"{title.format(pool)}, in % chosen 1 2 pre-trained 2 41.1 ± 0.1 52.1 ± 0.1" in text
    assert "random weights 2 33.1 ± 0.1 34.1 ± 0.1" in text
    assert page.count('class="chosen"') == 4


def test_only_the_chosen_layer_stands_among_the_evaluations(finished):
    write(finished, layer_results())
    text = report_text(finished)
    assert "in linear probe accuracy at 100 % of the labels, pre-training" in text
    assert "+18.0 points" in text
    assert "layer chosen on dev" in text
    assert "layer 1," not in text
    for pool in ("mean", "cls"):
        assert f"Linear probe accuracy, pool {pool} 52.1 % random weights 34.1 %" in text


def test_a_single_layer_has_a_table_but_no_plot(finished):
    results = layer_results(seeds=1, pools=("mean",))
    write(finished, [result for result in results if result.protocol["layer"] != 1])
    page = write_report(finished).read_text(encoding="utf-8")
    assert "pre-trained 2 52.0" in text_of(page)
    assert 'role="img" aria-label="Linear probe accuracy by layer' not in page


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
    write(finished, [])
    text = report_text(finished)
    assert "so it does not tell what pre-training buys" in text
    assert "better" not in text


def test_pictures_beyond_the_budget_are_named_instead(finished, monkeypatch):
    monkeypatch.setattr("mimkit.report.embed.MAX_PICTURE_BYTES", 1000)
    text = report_text(finished)
    assert (
        "Too large for this page, but in the folder of the run: pictures/predictions.png." in text
    )


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
