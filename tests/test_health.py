"""The evaluator: which images it reads, what it does beside training, what a report makes of it."""

import dataclasses
import html
import json
import math

import pytest
import torch

import mimkit
from mimkit import Geometry, Grid, Tokens
from mimkit.evaluate.consistency import VARIATION
from mimkit.evaluate.features import extract, whole
from mimkit.evaluate.health import Health
from mimkit.evaluate.images import Renderings
from mimkit.evaluate.spectra import attention_entropy, lidar, rankme, uniformity
from mimkit.recipe import registry
from mimkit.report.rows import Number, rows
from mimkit.report.verdicts import judge

SMALL = {"lidar_images": 20, "lidar_renderings": 3}
NAMES = ["rankme", "lidar", "alpha", "uniformity", "dead_share", "attention_entropy"]


def by_metric(results):
    return {result.metric: result for result in results}


def values(results):
    return {result.metric: result.value for result in results}


def test_no_label_is_needed_and_every_number_is_there(subject, geometry):
    bare = dataclasses.replace(
        subject,
        train=dataclasses.replace(subject.train, labels=None, classes=()),
        test=dataclasses.replace(subject.test, labels=None, classes=()),
    )
    evaluator = Health(geometry, **SMALL)
    evaluator.check(bare)
    results = by_metric(evaluator.run(bare))
    assert list(results) == NAMES
    for result in results.values():
        assert (result.evaluator, result.init, result.num_images) == ("health", "pretrained", 40)
        assert math.isfinite(result.value)
    expected = {"pool": "mean", "num_images": 40, "lidar_images": 20, "lidar_renderings": 3}
    assert results["rankme"].protocol == expected | {"width": 16}
    assert not Health.needs_truth()
    assert not Health.needs_targets


def test_they_are_the_numbers_of_the_frozen_features_of_the_test_images(subject, geometry):
    encoder = subject.pretrainer.encoder
    found = values(Health(geometry, num_images=30, **SMALL).run(subject))
    index = torch.arange(30) * 40 // 30
    features = extract(encoder, subject, whole(subject, subject.test, index))
    assert found["rankme"] == pytest.approx(rankme(features))
    assert found["uniformity"] == pytest.approx(uniformity(features))
    few = torch.arange(0, 40, 2)
    renderings = [
        extract(
            encoder,
            subject,
            Renderings(subject.test, few, (subject.view,), 20, VARIATION, 0, number),
        )
        for number in range(3)
    ]
    assert found["lidar"] == pytest.approx(lidar(torch.stack(renderings, dim=1)))
    image = subject.test.view(index, subject.view)
    with torch.no_grad():
        looks = encoder.eval().attention(image)
    assert found["attention_entropy"] == pytest.approx(attention_entropy(looks), rel=1e-5)


def test_every_seed_and_every_recipe_sees_the_same_images(subject, geometry, tmp_path):
    first = values(Health(geometry, **SMALL).run(subject))
    torch.manual_seed(9)
    other = dataclasses.replace(
        subject,
        seed=5,
        augment=dataclasses.replace(subject.augment, crop="none"),
        workdir=tmp_path / "other",
    )
    assert values(Health(geometry, **SMALL).run(other)) == first


def test_modes_and_random_state_are_left_as_they_were(subject, geometry):
    pretrainer = subject.pretrainer.train()
    state = torch.random.get_rng_state()
    Health(geometry, **SMALL).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert pretrainer.encoder.training
    assert all(parameter.grad is None for parameter in pretrainer.parameters())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda image: torch.ones(len(image), 16, 16), {"rankme": 1.0, "dead_share": 1.0}),
        (lambda image: torch.full((len(image), 16, 16), math.nan), {}),
    ],
    ids=["collapsed", "NaN"],
)
def test_a_broken_encoder_is_told_and_stops_nothing(subject, geometry, monkeypatch, make, expected):
    def features(image):
        patches = make(image)
        return Tokens(patches, patches[:, :0], torch.arange(16).expand(len(image), -1))

    monkeypatch.setattr(subject.pretrainer.encoder, "features", features)
    found = values(Health(geometry, **SMALL).run(subject))
    for name in ("rankme", "alpha", "dead_share"):
        value = expected.get(name, math.nan)
        assert found[name] == pytest.approx(value, nan_ok=True), name


def test_an_encoder_that_does_not_say_where_it_looks_has_no_such_number(
    subject, geometry, monkeypatch
):
    monkeypatch.setattr(subject.pretrainer.encoder, "attention", lambda image: None)
    assert list(values(Health(geometry, **SMALL).run(subject))) == NAMES[:-1]


@pytest.mark.parametrize(
    "entry", registry.entries("encoders"), ids=lambda entry: f"{entry.distribution}:{entry.name}"
)
def test_it_works_for_every_encoder(entry, subject):
    grid = Grid(4, 4, 4)
    cls = registry.load(entry)
    torch.manual_seed(0)
    encoder = cls(Geometry(grid), **cls.miniature)
    pretrainer = subject.pretrainer
    pretrainer.encoder = encoder
    found = values(Health(Geometry(grid), **SMALL).run(subject))
    tells = encoder.eval().attention(torch.zeros(2, 3, 16, 16)) is not None
    assert list(found) == (NAMES if tells else NAMES[:-1])
    assert 1 <= found["rankme"] <= min(40, encoder.embed_dim)


def test_work_counts_every_pass(subject, geometry, monkeypatch):
    encoder, seen = subject.pretrainer.encoder, []
    encode, look = encoder.features, encoder.attention
    monkeypatch.setattr(encoder, "features", lambda x: seen.append(len(x)) or encode(x))
    monkeypatch.setattr(encoder, "attention", lambda x: seen.append(len(x)) or look(x))
    evaluator = Health(geometry, num_images=30, **SMALL)
    evaluator.run(subject)
    assert evaluator.work(subject).encoded == sum(seen) == 2 * 30 + 3 * 20


# ----------------------------------------------------------------------------- training and report


def test_it_is_logged_while_training_and_shown_in_the_report(tiny, tmp_path):
    evaluate = (
        'evaluate=[{part="health", num_images=12, lidar_images=8, lidar_renderings=2, '
        "every_steps=4}]"
    )
    folder = mimkit.run(tiny, settings=[evaluate], device="cpu", out=tmp_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {row["step"]: row for row in lines if "health/rankme" in row}
    assert sorted(logged) == [0, 4, 8, 12]
    assert {f"health/{name}" for name in NAMES} <= logged[12].keys()
    results = {
        r["metric"]: r["value"]
        for r in json.loads((folder / "results.json").read_text())["results"]
    }
    assert results["rankme"] == pytest.approx(logged[12]["health/rankme"])
    page = html.unescape((folder / "report.html").read_text())
    for name in ("Health RankMe", "Health LiDAR", "Health uniformity", "Health attention entropy"):
        assert f"{name} over the steps" in page, name
    assert "No evaluation of this run was compared with a baseline" in page


def test_methods_are_not_ranked_by_it():
    def number(label, seed, evaluator, value):
        result = {
            **{"evaluator": evaluator, "metric": "rankme", "init": "pretrained"},
            **{"value": value, "num_images": 10},
        }
        return Number(label, seed, {}, result)

    found = {
        evaluator: judge(row)
        for evaluator in ("health", "knn")
        for row in rows(
            ["a", "b"],
            [
                number(label, seed, evaluator, 10.0 * gain + gain * seed / 100)
                for label, gain in (("a", 1), ("b", 2))
                for seed in range(3)
            ],
        )
    }
    assert found["knn"].ranking == (("b",), ("a",))
    assert found["health"].ranking is None
    assert not found["health"].pairs
    assert found["health"].means["a", "pretrained"].num_seeds == 3
