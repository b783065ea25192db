import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import mimkit
from mimkit.evaluate.uncertainty import Measured
from mimkit.report.findings import Cell, Outcome, Row
from mimkit.report.tables import lines, markdown, write_csv, write_json
from mimkit.report.verdicts import compare, judge, spread
from mimkit.study.gather import study_of
from mimkit.study.records import Budget, Method, Plan, Trial

PLAN = {"seeds": [0, 1, 2]}
LAYER = "chosen on development images"
SHARES = {
    "selfie": {0: 0.40, 1: 0.41, 2: 0.39},
    "beit": {0: 0.50, 1: 0.52, 2: 0.49},
    "cae": {0: 0.60, 1: 0.61, 2: 0.60},
}
SCRATCH = {0: 0.45, 1: 0.455, 2: 0.445}


def make_plan(*labels, seeds=3):
    trial = Trial(0.1, 1e9, 2**30, 0.0, {}, {}, 0.01, 0.03, "cifar", 1000, "CPU")
    methods = tuple(Method(m, m, f"{m}_cifar", 16, 50, (), trial, 60.0) for m in labels)
    command = f"mimkit compare {' '.join(labels)} --dataset cifar10"
    return Plan(
        command, "cifar10", Budget("images", 800), tuple(range(seeds)), methods, mimkit.__version__
    )


def row(evaluator="finetune", metric="accuracy", shares=SHARES, own_task=False, **protocol):
    start = "scratch" if evaluator == "finetune" else "random"
    values = {
        label: {"pretrained": numbers} | ({} if own_task else {start: SCRATCH})
        for label, numbers in shares.items()
    }
    return Row(evaluator, metric, protocol, values, own_task)


def result(value, seed, init="pretrained", **protocol):
    return {
        "evaluator": "finetune",
        "metric": "accuracy",
        "value": value,
        "num_images": 2000,
        "seed": seed,
        "init": init,
        "protocol": protocol,
        "chosen": {"lr": 0.003},
    }


def comparison(*rows, plan=None, outcomes=(), refused=()):
    plan = plan or make_plan(*SHARES)
    verdicts = tuple(map(judge, rows))
    study = study_of(plan, Path("here"), outcomes, verdicts, refused)
    return replace(study, answer="cae is the best.")


def plain(text):
    return text.replace("\u202f", " ").replace("\u2212", "-")


def shown(*rows, **others):
    """Titles, cells and rankings as a reader sees them."""
    found = lines(comparison(*rows, **others))
    return {
        (head, "" if line.heads else line.title): (tuple(map(plain, line.cells)), line.ranking)
        for number, line in enumerate(found)
        for head in [plain(next(one.title for one in found[number::-1] if one.heads))]
    }


TITLE = "fine-tuning accuracy at 10 % of the labels"


def test_an_evaluation_shows_means_baselines_differences_and_the_ranking():
    found = shown(row(label_fraction=0.1))
    assert list(found) == [
        (TITLE, ""),
        (TITLE, "training from scratch"),
        (TITLE, "difference from it"),
    ]
    cells, ranking = found[TITLE, ""]
    assert cells[0] == "40.0 % [37.5, 42.5]"
    assert ranking == "cae > beit > selfie"
    assert found[TITLE, "training from scratch"][0][2] == "45.0 % [43.8, 46.2]"
    differences, _ = found[TITLE, "difference from it"]
    assert differences[0] == "-5.0 ▼ [-6.2, -3.8]"
    assert differences[2] == "+15.3 ▲ [+14.6, +16.1]"


def test_a_difference_that_cannot_be_seen_has_no_mark():
    shares = {"a": {0: 0.45, 1: 0.46, 2: 0.46}, "b": {0: 0.44, 1: 0.47, 2: 0.45}}
    found = shown(row(shares=shares), plan=make_plan("a", "b"))
    differences, _ = found["fine-tuning accuracy", "difference from it"]
    assert not any(mark in cell for cell in differences for mark in "▲▼")
    assert found["fine-tuning accuracy", ""][1] == "none at n = 3"


def test_methods_of_one_place_stand_together():
    shares = SHARES | {"selfie": {0: 0.51, 1: 0.50, 2: 0.52}}
    ranking = shown(row(shares=shares))["fine-tuning accuracy", ""][1]
    assert ranking == "cae > selfie ≈ beit"


def test_one_seed_has_no_interval():
    shares = {label: {0: numbers[0]} for label, numbers in SHARES.items()}
    found = shown(row(shares=shares), plan=make_plan(*SHARES, seeds=1))
    assert found["fine-tuning accuracy", ""] == (("40.0 %", "50.0 %", "60.0 %"), "none at n = 1")
    assert found["fine-tuning accuracy", "difference from it"][0][2] == "+15.0"


def test_what_is_missing_shows_as_a_dash_and_fewer_seeds_are_said():
    shares = {"selfie": SHARES["selfie"], "cae": {0: 0.60, 1: 0.62}}
    cells, _ = shown(row(shares=shares))["fine-tuning accuracy", ""]
    assert cells[1] == "–"
    assert cells[2].endswith("] (n = 2)")


def test_of_a_probe_of_all_layers_the_chosen_one_is_shown():
    rows = [row("linear_probe", layer=layer, label_fraction=0.1) for layer in (LAYER, 1, 2)]
    heads = [head for head, title in shown(*rows) if not title]
    assert heads == ["linear probe accuracy at 10 % of the labels"]


def test_rows_of_one_name_are_told_apart_by_what_differs():
    rows = [row("linear_probe", layer=LAYER, pool=pool, num_labels=5) for pool in ("mean", "cls")]
    heads = [head for head, title in shown(*rows) if not title]
    assert heads == ["linear probe accuracy, pool mean", "linear probe accuracy, pool cls"]


def test_the_pre_training_task_comes_last_without_a_ranking_or_what_guesses_reach():
    names = ("metric/x/accuracy", "metric/x/chance", "loss/x", "metric/x/spread")
    found = shown(*(row("heldout", name, own_task=True) for name in names), row("knn"))
    heads = [head for head, title in found if not title]
    assert heads == ["k-NN accuracy", "its own task: metric/x/accuracy", "its own task: loss/x"]
    assert found["its own task: metric/x/accuracy", ""][1] == ""


def test_markdown_holds_answer_table_failures_and_the_command():
    plan = make_plan(*SHARES)
    outcomes = [
        Outcome(Cell("cae", 0), "finished", Path("a"), "mimkit run"),
        Outcome(Cell("cae", 1), "failed", Path("b"), "mimkit run", "the disk\nis full"),
        Outcome(Cell("cae", 2), "missing", Path("c"), "mimkit run"),
    ]
    text = plain(
        markdown(
            comparison(
                row(label_fraction=0.1), plan=plan, outcomes=outcomes, refused=["knn: not compared"]
            )
        )
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "|  | selfie | beit | cae | ranking |"
    assert rows[1] == "| --- | ---: | ---: | ---: | --- |"
    assert rows[2].startswith(f"| **{TITLE}** | 40.0 % [37.5, 42.5] |")
    assert {line.count("|") for line in rows} == {6}
    assert "\n\ncae is the best.\n\n" in text
    assert "- cae, seed 1: the disk is full\n" in text
    assert "- cae, seed 2: has not finished\n" in text
    assert "- knn: not compared\n" in text
    assert "seed 0" not in text
    assert "    mimkit compare selfie beit cae --dataset cifar10" in text
    assert "800 images seen" in text


def test_a_refused_run_stands_in_markdown_once():
    outcome = Outcome(Cell("cae", 0), "failed", Path("a"), "", "not comparable: other images")
    text = markdown(
        comparison(row(), outcomes=[outcome], refused=["cae, seed 0: not comparable: other images"])
    )
    assert text.count("not comparable") == 1


def test_csv_holds_every_single_number(tmp_path):
    outcomes = [
        Outcome(
            Cell(label, seed),
            "finished",
            Path("a"),
            "",
            results=[
                result(SHARES[label][seed], seed, label_fraction=0.1, total_steps=50),
                result(math.nan, seed, "scratch"),
            ],
        )
        for seed in (0, 1)
        for label in ("beit", "cae")
    ]
    file = tmp_path / "results.csv"
    write_csv(comparison(outcomes=outcomes), file)
    with file.open(encoding="utf-8", newline="") as opened:
        found = list(csv.DictReader(opened))
    assert len(found) == 8
    assert found[2] == {
        "method": "cae",
        "seed": "0",
        "evaluator": "finetune",
        "metric": "accuracy",
        "init": "pretrained",
        "value": "0.6",
        "n": "2000",
        "label_fraction": "0.1",
        "protocol": '{"label_fraction": 0.1, "total_steps": 50}',
    }
    assert (found[3]["init"], found[3]["value"], found[3]["label_fraction"]) == ("scratch", "", "")


def test_from_json_the_statistics_can_be_done_again(tmp_path):
    file = tmp_path / "results.json"
    outcomes = [
        Outcome(Cell("cae", 0), "finished", Path("a"), "mimkit run x", results=[result(0.6, 0)]),
        Outcome(Cell("cae", 1), "failed", Path("b"), "mimkit run y", "the disk is full"),
    ]
    given = comparison(row(label_fraction=0.1), outcomes=outcomes)
    write_json(given, PLAN, file)
    tree = json.loads(file.read_text(encoding="utf-8"))
    (found,) = tree["rows"]
    numbers = {
        label: {int(seed): Measured(value) for seed, value in starts["pretrained"].items()}
        for label, starts in found["values"].items()
    }
    for pair, written in zip(given.verdicts[0].pairs, found["pairs"], strict=True):
        again = compare(pair.first, pair.second, numbers[pair.first], numbers[pair.second])
        assert written["difference"]["low"] == again.difference.low
        assert written["p_value"] == again.p_value
        assert written["adjusted"] == pair.adjusted
    mean = next(m for m in found["means"] if (m["method"], m["start"]) == ("cae", "pretrained"))
    assert mean["high"] == spread(numbers["cae"]).high
    assert found["ranking"] == [["cae"], ["beit"], ["selfie"]]
    assert found["protocol"] == {"label_fraction": 0.1}
    assert tree["cells"][0]["results"][0]["chosen"] == {"lr": 0.003}
    assert (tree["cells"][1]["state"], tree["cells"][1]["reason"]) == ("failed", "the disk is full")
    assert tree["plan"] == PLAN
    assert tree["answer"] == "cae is the best."


def test_json_is_json_also_where_a_number_is_none(tmp_path):
    file = tmp_path / "results.json"
    shares = {"cae": {0: math.nan, 1: math.inf}}
    outcome = Outcome(Cell("cae", 0), "finished", Path("a"), "", results=[result(math.nan, 0)])
    write_json(comparison(row("knn", shares=shares), outcomes=[outcome]), PLAN, file)

    def refuse(word):
        pytest.fail(f"{word} is not JSON")

    tree = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    assert tree["rows"][0]["values"]["cae"]["pretrained"] == {"0": None, "1": None}


def test_the_same_runs_give_the_same_files(tmp_path):
    outcome = Outcome(Cell("cae", 0), "finished", Path("a"), "", results=[result(0.6, 0)])
    slower = Outcome(
        Cell("cae", 0), "finished", Path("a"), "", ledger={"seconds": 9}, results=[result(0.6, 0)]
    )
    for number, one in enumerate((outcome, slower)):
        write_json(comparison(row(), outcomes=[one]), PLAN, tmp_path / f"{number}.json")
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
