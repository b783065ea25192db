import json
import math
from itertools import product

import pytest
import torch
from scipy import stats

import mimkit
from mimkit.evaluate.image_scores import pack
from mimkit.report.answer import answer, main_row
from mimkit.report.findings import Row
from mimkit.report.verdicts import judge
from mimkit.study.gather import gather
from mimkit.study.records import Budget, Method, Plan, Trial

STEPS, BATCH = 50, 16
LAYER = "chosen on development images"


def trial(fingerprint="cifar"):
    return Trial(0.1, 1e9, 2**30, 0.0, {}, {}, 0.01, 0.03, fingerprint, 1000, "CPU")


def method(label):
    return Method(label, label, f"{label}_cifar", BATCH, STEPS, (), trial(), 60.0)


def make_plan(*labels, seeds=3):
    return Plan(
        command=f"mimkit compare {' '.join(labels)} --dataset cifar10",
        dataset="cifar10",
        budget=Budget("images", STEPS * BATCH),
        seeds=tuple(range(seeds)),
        methods=tuple(map(method, labels)),
        mimkit=mimkit.__version__,
    )


def result(value, evaluator="finetune", init="pretrained", metric="accuracy", seed=0, **protocol):
    return {
        "evaluator": evaluator,
        "metric": metric,
        "value": value,
        "num_images": 10**9,  # so many that their choice adds nothing to the seeds' error
        "seed": seed,
        "init": init,
        "protocol": protocol,
        "chosen": {"lr": 0.003},
    }


def tuned(value, init="pretrained", **protocol):
    return result(value, init=init, **{"label_fraction": 0.1, "total_steps": 50, **protocol})


def write_run(folder, label, seed, results, *, finished=True, **ledger):
    run = folder / "runs" / label / str(seed)
    run.mkdir(parents=True)
    seconds = {"prepare": 0.1, "train": 5.0} | ({"evaluate": 3.0} if finished else {})
    content = {
        "command": "mimkit run",
        "mimkit": mimkit.__version__,
        "dataset": {"name": "cifar10", "fingerprint": "cifar", "train_images": 1000},
        "steps": STEPS,
        "images_seen": STEPS * BATCH,
        "seconds": seconds,
        **ledger,
    }
    (run / "ledger.json").write_text(json.dumps(content))
    (run / "results.json").write_text(
        json.dumps({"results": results, "summaries": [], "differences": []})
    )


def write_all(folder, plan, value):
    """Writes every run; ``value`` gives label and seed the list of results."""
    for cell in plan.cells:
        write_run(folder, cell.method, cell.seed, value(cell.method, cell.seed))


SHARES = {
    "selfie": [0.40, 0.41, 0.39],
    "beit": [0.50, 0.52, 0.49],
    "cae": [0.60, 0.61, 0.60],
}
SCRATCH = [0.45, 0.46, 0.44]


def usual(label, seed):
    return [tuned(SHARES[label][seed]), tuned(SCRATCH[seed], "scratch")]


# What a row is made of


def test_numbers_stand_by_method_start_and_seed(tmp_path):
    plan = make_plan("selfie", "cae")
    write_all(tmp_path, plan, usual)
    comparison = gather(plan, tmp_path)
    (found,) = comparison.verdicts
    assert (found.row.evaluator, found.row.metric) == ("finetune", "accuracy")
    assert found.row.protocol == {"label_fraction": 0.1, "total_steps": 50}
    assert found.row.values == {
        label: {
            "pretrained": dict(enumerate(SHARES[label])),
            "scratch": dict(enumerate(SCRATCH)),
        }
        for label in ("selfie", "cae")
    }
    assert [one.state for one in comparison.outcomes] == ["finished"] * 6
    assert comparison.refused == ()


def test_every_run_says_how_to_repeat_it(tmp_path):
    folder = tmp_path / "my comparison"
    comparison = gather(make_plan("selfie", "cae", seeds=2), folder)
    assert comparison.outcomes[2].command == (
        f"mimkit run '{folder}/recipes/selfie.toml' --seed 1 --out '{folder}/runs'"
    )


def test_label_fractions_ascend_and_layers_follow_the_chosen_one(tmp_path):
    plan = make_plan("cae", seeds=1)
    found = [
        result(0.1, "linear_probe", layer=layer, label_fraction=fraction)
        for fraction, layer in product((1.0, 0.1), (2, 1, LAYER))
    ]
    write_run(tmp_path, "cae", 0, [result(0.2, "knn", k=20), *found])
    rows = [verdict.row for verdict in gather(plan, tmp_path).verdicts]
    assert [row.evaluator for row in rows] == ["knn", *["linear_probe"] * 6]
    assert [(row.protocol["label_fraction"], row.protocol["layer"]) for row in rows[1:]] == [
        (0.1, LAYER),
        (0.1, 1),
        (0.1, 2),
        (1.0, LAYER),
        (1.0, 1),
        (1.0, 2),
    ]


def test_the_number_of_layers_keeps_no_methods_apart(tmp_path):
    plan = make_plan("selfie", "cae")

    def results(label, seed):
        layers = 4 if label == "selfie" else 12
        return [result(SHARES[label][seed], "linear_probe", pool="mean", num_layers=layers)]

    write_all(tmp_path, plan, results)
    (found,) = gather(plan, tmp_path).verdicts
    assert set(found.row.values) == {"selfie", "cae"}
    assert found.row.protocol == {"pool": "mean"}
    assert found.ranking == (("cae",), ("selfie",))


def test_a_setting_of_the_encoder_that_is_the_same_for_all_stays_in_the_protocol(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)
    write_all(tmp_path, plan, lambda *_: [result(0.5, "linear_probe", num_layers=4)])
    assert gather(plan, tmp_path).verdicts[0].row.protocol == {"num_layers": 4}


def test_methods_measured_with_other_settings_are_not_compared_and_that_is_said(tmp_path):
    plan = make_plan("selfie", "cae", seeds=2)

    def results(label, seed):
        steps = 50 if label == "cae" else 70
        return [tuned(0.5, label_fraction=f, total_steps=steps) for f in (0.1, 1.0)]

    write_all(tmp_path, plan, results)
    comparison = gather(plan, tmp_path)
    assert all(found.pairs == () for found in comparison.verdicts)
    (said,) = comparison.refused
    assert "finetune accuracy: selfie and cae are not compared" in said
    assert "total_steps 70 and 50" in said


def test_methods_judged_on_other_labels_are_not_compared_and_that_is_said(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)
    for label, fingerprint in (("selfie", "0123456789"), ("cae", "9876543210")):
        labelled = {"name": "birds", "fingerprint": fingerprint}
        write_run(tmp_path, label, 0, [tuned(0.5)], labelled=labelled)
    comparison = gather(plan, tmp_path)
    assert len(comparison.verdicts) == 2
    (said,) = comparison.refused
    assert "selfie and cae are not compared" in said
    assert "data birds 01234567 and birds 98765432" in said


def test_methods_judged_on_the_same_labels_are_compared_without_a_word(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)
    labelled = {"name": "birds", "fingerprint": "0123456789"}
    for label in ("selfie", "cae"):
        write_run(tmp_path, label, 0, [tuned(0.5)], labelled=labelled)
    (found,) = gather(plan, tmp_path).verdicts
    assert "data" not in found.row.protocol


def test_an_evaluation_that_one_method_lacks_is_no_other_setting(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)

    def results(label, seed):
        pools = ("mean", "cls") if label == "cae" else ("mean",)
        return [result(0.5, "linear_probe", pool=pool) for pool in pools]

    write_all(tmp_path, plan, results)
    assert gather(plan, tmp_path).refused == ()


def test_a_number_measured_twice_in_a_run_counts_once(tmp_path):
    plan = make_plan("cae", seeds=1)
    write_run(tmp_path, "cae", 0, [tuned(0.5), tuned(0.7) | {"seed": 1}])
    (found,) = gather(plan, tmp_path).verdicts
    assert found.row.values["cae"]["pretrained"] == {0: pytest.approx(0.6)}


def test_the_pre_training_task_is_not_compared(tmp_path):
    plan = make_plan("selfie", "cae")
    write_all(
        tmp_path,
        plan,
        lambda label, seed: [result(SHARES[label][seed], "heldout", metric="metric/x/accuracy")],
    )
    comparison = gather(plan, tmp_path)
    (found,) = comparison.verdicts
    assert found.row.own_task
    assert found.means["cae", "pretrained"].num_seeds == 3
    assert (found.pairs, found.ranking) == ((), None)
    assert comparison.answer.startswith("Nothing compares the methods")


def test_settings_of_the_pre_training_task_may_differ(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)
    write_all(tmp_path, plan, lambda label, _: [result(0.5, "heldout", masked=len(label))])
    comparison = gather(plan, tmp_path)
    assert len(comparison.verdicts) == 2
    assert comparison.refused == ()


# What does not count


def test_a_missing_run_is_left_out_and_named(tmp_path):
    plan = make_plan("selfie", "beit", "cae")
    for cell in plan.cells:
        if (cell.method, cell.seed) != ("beit", 2):
            write_run(tmp_path, cell.method, cell.seed, usual(cell.method, cell.seed))
    comparison = gather(plan, tmp_path)
    missing = comparison.outcomes[7]
    assert (missing.cell.method, missing.state, missing.ledger) == ("beit", "missing", {})
    (found,) = comparison.verdicts
    by_pair = {(p.first, p.second): p.difference.num_seeds for p in found.pairs}
    assert by_pair == {("selfie", "beit"): 2, ("selfie", "cae"): 3, ("beit", "cae"): 2}
    assert comparison.answer.endswith("Not in it: beit, seed 2 (failed or not finished).")


def test_an_interrupted_run_counts_as_missing_with_all_it_measured(tmp_path):
    plan = make_plan("cae", seeds=2)
    write_run(tmp_path, "cae", 0, [tuned(0.5)])
    write_run(tmp_path, "cae", 1, [tuned(0.9)], finished=False)
    comparison = gather(plan, tmp_path)
    assert [one.state for one in comparison.outcomes] == ["finished", "missing"]
    assert comparison.outcomes[1].results == ()
    assert comparison.outcomes[1].ledger["seconds"]["train"] == 5.0
    assert comparison.verdicts[0].row.values["cae"]["pretrained"] == {0: 0.5}


def test_a_failed_run_is_left_out_with_its_reason(tmp_path):
    plan = make_plan("selfie", "cae", seeds=2)
    write_run(tmp_path, "selfie", 0, [tuned(0.4)])
    write_run(tmp_path, "selfie", 1, [tuned(0.4)])
    write_run(tmp_path, "cae", 0, [tuned(0.5)])
    write_run(tmp_path, "cae", 1, [tuned(0.9)], finished=False)
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "cae-1.txt").write_text("the loss is not finite\n")
    comparison = gather(plan, tmp_path)
    failed = comparison.outcomes[3]
    assert (failed.state, failed.reason) == ("failed", "the loss is not finite")
    assert failed.results == ()
    assert comparison.refused == ()
    assert "cae, seed 1" in comparison.answer


def test_a_run_that_failed_once_and_then_finished_counts(tmp_path):
    plan = make_plan("cae", seeds=1)
    write_run(tmp_path, "cae", 0, [tuned(0.5)])
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "cae-0.txt").write_text("killed")
    assert gather(plan, tmp_path).outcomes[0].state == "finished"


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        ({"dataset": {"fingerprint": "other"}}, "fingerprint .* must be cifar, but is other"),
        ({"steps": 40, "images_seen": 640}, "steps must be 50, but is 40"),
        ({"images_seen": 1600}, "seen must be 800, but is 1600"),
        ({"mimkit": "0.0.9"}, "mimkit must be .*, but is 0.0.9"),
    ],
)
def test_a_run_that_is_not_the_one_of_the_plan_is_refused_by_name(tmp_path, ledger, said):
    plan = make_plan("selfie", "cae", seeds=2)
    write_run(tmp_path, "selfie", 0, [tuned(0.4)])
    write_run(tmp_path, "selfie", 1, [tuned(0.4)])
    write_run(tmp_path, "cae", 0, [tuned(0.5)])
    write_run(tmp_path, "cae", 1, [tuned(0.9)], **ledger)
    comparison = gather(plan, tmp_path)
    refused = comparison.outcomes[3]
    assert refused.state == "failed"
    assert refused.results == ()
    assert comparison.verdicts[0].row.values["cae"]["pretrained"] == {0: 0.5}
    (text,) = comparison.refused
    assert text == f"cae, seed 1: {refused.reason}"
    with pytest.raises(ValueError, match=said):
        raise ValueError(text)
    assert f"Remove {tmp_path / 'runs' / 'cae' / '1'}" in text


def test_a_damaged_file_fails_its_own_run_only(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)
    write_all(tmp_path, plan, usual)
    (tmp_path / "runs" / "cae" / "0" / "results.json").write_text('{"results": [')
    comparison = gather(plan, tmp_path)
    assert [one.state for one in comparison.outcomes] == ["finished", "failed"]
    assert "must be JSON" in comparison.outcomes[1].reason


def test_nothing_yet_gives_no_finding(tmp_path):
    comparison = gather(make_plan("selfie", "cae"), tmp_path)
    assert comparison.verdicts == ()
    assert comparison.answer == "No run has finished yet, so that nothing can be said."


# The answer


def say(tmp_path, shares, scratch=SCRATCH, seeds=3):
    plan = make_plan(*shares, seeds=seeds)
    write_all(
        tmp_path,
        plan,
        lambda label, seed: [tuned(shares[label][seed]), tuned(scratch[seed], "scratch")],
    )
    return gather(plan, tmp_path).answer.replace("\u202f", " ").replace("\u2212", "-")


def test_the_best_is_named_where_the_ranking_allows_it(tmp_path):
    assert say(tmp_path, SHARES) == (
        "At 800 images seen, in fine-tuning accuracy at 10 % of the labels, cae is the best, ahead "
        "of beit by 10.0 points (95 % interval +7.5 to +12.5, n = 3 seeds); cae is better than "
        "training from scratch (+15.3 points, 95 % interval +13.9 to +16.8, n = 3 seeds)."
    )


def test_no_best_is_named_where_methods_cannot_be_told_apart(tmp_path):
    shares = {"beit": [0.50, 0.46, 0.42], "cae": [0.48, 0.50, 0.46]}
    assert say(tmp_path, shares, scratch=[0.47, 0.46, 0.47]) == (
        "At 800 images seen, in fine-tuning accuracy at 10 % of the labels, cae and beit cannot be "
        "told apart: cae is ahead of beit by 2.0 points (95 % interval -6.6 to +10.6, n = 3 "
        "seeds), and to show a difference of this size about 26 seeds are needed; none of them can "
        "be told from training from scratch (beit -0.7 points, cae +1.3 points; n = 3 seeds, all "
        "intervals hold zero)."
    )


def test_two_best_ones_share_their_place(tmp_path):
    shares = {"selfie": SHARES["selfie"], "beit": [0.59, 0.62, 0.60], "cae": SHARES["cae"]}
    said = say(tmp_path, shares)
    assert "beit and cae are better than selfie, but cannot be told apart" in said or (
        "cae and beit are better than selfie, but cannot be told apart" in said
    )
    assert "all of them are better than training from scratch" in said
    assert "best" not in said


def test_a_method_between_two_that_differ_is_no_reason_to_rank(tmp_path):
    shares = {
        "selfie": [0.58, 0.59, 0.58],
        "beit": [0.66, 0.53, 0.58],
        "cae": [0.61, 0.62, 0.61],
    }
    said = say(tmp_path, shares)
    assert "cae, beit and selfie cannot be ranked: cae is better than selfie by 3.0 points" in said
    assert "but cae is ahead of beit by 2.3 points" in said


def test_a_difference_lost_to_the_number_of_pairs_asks_for_no_fewer_seeds_than_there_are(tmp_path):
    shares = {
        "a": [0.600, 0.616, 0.624, 0.650],
        "b": [0.59, 0.60, 0.60, 0.62],
        "c": [0.60, 0.57, 0.62, 0.59],
        "d": [0.59, 0.62, 0.57, 0.60],
    }
    said = say(tmp_path, shares, scratch=[0.5, 0.5, 0.51, 0.5], seeds=4)
    assert "cannot be told apart: a is ahead of b by 2.0 points" in said
    assert "too little where 6 pairs are compared" in said


def test_one_seed_shows_a_gap_and_no_more(tmp_path):
    said = say(tmp_path, {"beit": [0.3], "cae": [0.5]}, seeds=1)
    assert (
        "cannot be told apart: cae is ahead of beit by 20.0 points (one seed: no interval)" in said
    )
    assert "against training from scratch they differ by beit -15.0 points, cae +5.0 points" in said


def test_equal_methods_show_no_difference(tmp_path):
    said = say(tmp_path, {"beit": SHARES["cae"], "cae": SHARES["cae"]})
    assert "no difference between beit and cae was seen" in said
    assert "seeds are needed" not in said


@pytest.mark.parametrize(
    ("scratch", "said"),
    [
        ([0.7, 0.7, 0.71], "training from scratch is better than cae (-10.0 points"),
        ([0.66, 0.56, 0.61], "cae cannot be told from training from scratch (-0.7 points"),
    ],
)
def test_a_best_method_that_is_no_better_than_from_scratch_is_called_that(tmp_path, scratch, said):
    assert said in say(tmp_path, SHARES, scratch)


def test_a_single_method_is_compared_with_its_baseline(tmp_path):
    said = say(tmp_path, {"cae": SHARES["cae"]})
    assert "of the labels, cae is better than training from scratch (+15.3 points" in said


def test_mixed_gains_are_told_one_by_one(tmp_path):
    shares = {"a": [0.60, 0.50, 0.70], "b": [0.55, 0.56, 0.55]}
    said = say(tmp_path, shares)
    assert "compared with training from scratch, a is not distinguishable (+15.0 points" in said
    assert "and b is better (+10.3 points" in said


def test_many_missing_runs_are_counted(tmp_path):
    plan = make_plan("selfie", "cae", seeds=3)
    write_run(tmp_path, "selfie", 0, usual("selfie", 0))
    said = gather(plan, tmp_path).answer
    assert said.endswith("Not in it: 5 of 6 runs (failed or not finished).")


def test_a_run_that_was_measured_in_another_way_is_not_called_failed(tmp_path):
    plan = make_plan("selfie", "cae", seeds=1)
    write_all(tmp_path, plan, lambda label, _: [tuned(0.5, label_fraction=len(label) / 10)])
    assert gather(plan, tmp_path).answer.endswith(
        "Not in it: selfie, seed 0 (measured in another way)."
    )


def say_with_knn(tmp_path, shares, tuned_scratch, random, knn):
    """Fine-tuning speaks; k-NN says what ``knn`` gives by method, over ``random``."""
    plan = make_plan(*shares)

    def results(label, seed):
        return [
            tuned(shares[label][seed]),
            tuned(tuned_scratch[seed], "scratch"),
            result(knn[label][seed], "knn"),
            result(random[seed], "knn", "random"),
        ]

    write_all(tmp_path, plan, results)
    return gather(plan, tmp_path).answer.replace("\u202f", " ").replace("\u2212", "-")


ALIKE = {"beit": [0.50, 0.46, 0.42], "cae": [0.48, 0.50, 0.46]}


def test_gains_that_fine_tuning_does_not_show_are_in_the_first_sentence(tmp_path):
    gained = [0.10, 0.12, 0.11]
    difference = [a - b for a, b in zip(SHARES["cae"], gained, strict=True)]
    low, high = stats.t.interval(0.95, 2, sum(difference) / 3, stats.sem(difference))
    knn = {"beit": [0.11, 0.09, 0.12], "cae": SHARES["cae"]}
    said = say_with_knn(tmp_path, ALIKE, [0.47, 0.46, 0.47], gained, knn)
    assert said.count(". ") == 0
    assert "none of them can be told from training from scratch" in said
    assert (
        "in other evaluations pre-training is better in 1 of 2 comparisons with a baseline (cae in "
        f"k-NN accuracy: +49.3 points, 95 % interval +{100 * low:.1f} to +{100 * high:.1f}, n = 3 "
        "seeds, over frozen random weights) and worse in 0; methods are told apart there in 1 pair "
        "(cae over beit in k-NN accuracy: +49.7 points)."
    ) in said
    assert "as good" not in said


def test_losses_elsewhere_are_told_beside_a_gain_of_fine_tuning(tmp_path):
    knn = {"beit": SHARES["beit"], "cae": [0.2, 0.21, 0.2]}
    said = say_with_knn(tmp_path, SHARES, SCRATCH, [0.5, 0.5, 0.51], knn | {"selfie": [0.5] * 3})
    assert "cae is better than training from scratch" in said
    assert "and worse in 1 (cae in k-NN accuracy: -30.0 points, 95 % interval" in said


def test_what_other_evaluations_say_alike_is_only_counted(tmp_path):
    knn = {"beit": SHARES["beit"], "cae": SHARES["cae"]}
    shares = {"beit": SHARES["beit"], "cae": SHARES["cae"]}
    said = say_with_knn(tmp_path, shares, SCRATCH, SCRATCH, knn)
    assert said.endswith(
        "in other evaluations pre-training is better in 2 of 2 comparisons with a baseline and "
        "worse in 0."
    )


# What the judged images scored


def scored(correct, **changes):
    value = float(correct.float().mean())
    return {**tuned(value), "num_images": len(correct), "image_scores": pack(correct), **changes}


def write_scored(folder, plan, **changes):
    """Method a has 60 images of 100 right, b 52 of these and no other; alike in both seeds."""
    right = {"a": torch.arange(100) < 60, "b": torch.arange(100) < 52}
    write_all(folder, plan, lambda label, _: [scored(right[label], **changes)])


def test_methods_are_compared_on_each_image(tmp_path):
    plan = make_plan("a", "b", seeds=2)
    write_scored(tmp_path, plan)
    (found,) = gather(plan, tmp_path).verdicts
    (pair,) = found.pairs
    # McNemar: 8 images against 0.
    assert pair.p_value == pytest.approx(stats.binomtest(8, 8).pvalue, abs=0.01)
    assert pair.verdict == "better"
    assert found.means["a", "pretrained"].high - 0.6 == pytest.approx(1.96 * 0.0492, rel=0.03)


def test_runs_from_before_scores_were_kept_are_read_and_are_less_sure(tmp_path):
    plan = make_plan("a", "b", seeds=2)
    write_scored(tmp_path, plan, image_scores=None)
    (found,) = gather(plan, tmp_path).verdicts
    assert found.pairs[0].verdict == "not distinguishable at n=2"
    low, high = found.pairs[0].difference.low, found.pairs[0].difference.high
    independent = stats.norm.ppf(0.975) * math.sqrt((0.6 * 0.4 + 0.52 * 0.48) / 100)
    assert (high - low) / 2 == pytest.approx(independent, rel=0.03)


def test_what_a_run_measured_more_than_once_is_one_number_on_each_image_too(tmp_path):
    plan = make_plan("a", "b", seeds=2)
    right = torch.arange(100) < 50
    write_all(tmp_path, plan, lambda label, _: [scored(right), scored(~right)])
    (found,) = gather(plan, tmp_path).verdicts
    series = found.row.series("a", "pretrained")
    assert series[0].value == 0.5
    assert series[0].scores.tolist() == [0.5] * 100


def test_a_run_whose_scores_are_damaged_is_named(tmp_path):
    plan = make_plan("a", "b", seeds=2)
    write_scored(tmp_path, plan, image_scores="1:####")
    outcomes = gather(plan, tmp_path).outcomes
    assert [outcome.state for outcome in outcomes] == ["failed"] * 4
    assert outcomes[0].reason.startswith("image_scores must be what mimkit wrote")


# The row that speaks


def row(evaluator, own_task=False, labels=("a", "b"), **protocol):
    values = {label: {"pretrained": {0: 0.5, 1: 0.6}} for label in labels}
    return judge(Row(evaluator, "accuracy", protocol, values, own_task))


def test_fine_tuning_at_the_smallest_fraction_speaks_first():
    rows = [
        row("heldout", own_task=True),
        row("knn"),
        row("linear_probe", label_fraction=0.01, layer=LAYER),
        row("finetune", label_fraction=0.1),
        row("finetune", label_fraction=1.0),
        row("attentive_probe", label_fraction=0.01),
    ]
    assert main_row(rows) is rows[3]


def test_without_it_the_attentive_probe_then_the_chosen_layer_then_neighbours():
    attentive = row("attentive_probe", label_fraction=1.0)
    single = row("linear_probe", label_fraction=0.1, layer=3)
    chosen = row("linear_probe", label_fraction=0.1, layer=LAYER, pool="mean")
    cls = row("linear_probe", labels=("a",), label_fraction=0.1, layer=LAYER, pool="cls")
    knn, consistency = row("knn"), row("knn_consistency")
    heldout = row("heldout", own_task=True)
    assert main_row([heldout, consistency, knn, single, cls, chosen, attentive]) is attentive
    assert main_row([heldout, consistency, knn, single, cls, chosen]) is chosen
    assert main_row([heldout, consistency, knn, single]) is knn
    assert main_row([heldout, consistency]) is consistency
    assert main_row([heldout, single]) is None


def test_a_row_that_lacks_a_method_does_not_speak_before_one_that_has_it():
    knn = row("knn")
    assert main_row([row("finetune", labels=("a",), label_fraction=0.1), knn]) is knn


def test_frozen_features_are_told_from_random_ones():
    values = {
        label: {"pretrained": {0: high, 1: 1.02 * high}, "random": {0: 0.3, 1: 0.3}}
        for label, high in (("a", 0.5), ("b", 0.6))
    }
    found = judge(Row("knn_consistency", "consistency", {}, values))
    said = answer([found], "800 images seen", make_plan("a", "b", seeds=2).cells)
    assert "in k-NN consistency, b is the best, ahead of a by 0.101 (" in said
    assert "b is better than frozen random weights (+0.306, " in said
    assert "points" not in said


def test_a_number_that_is_none_does_not_speak():
    values = {"a": {"pretrained": {0: math.nan}}}
    assert main_row([judge(Row("knn", "accuracy", {}, values))]) is None


def test_one_method_without_a_baseline_claims_nothing():
    found = judge(Row("knn", "accuracy", {}, {"a": {"pretrained": {0: 0.5, 1: 0.6}}}))
    assert answer([found], "800 images seen", make_plan("a", seeds=2).cells) == (
        "The one method was compared with no baseline, so that nothing can be said."
    )
