import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from mimkit.errors import RecipeError
from mimkit.evaluate.fractions import stratified_subset
from mimkit.evaluate.linear import LinearProbe
from mimkit.evaluate.logistic import fit


def clusters(num_classes=4, per_class=30, dim=6, spread=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, dim, generator=generator) * 2
    labels = torch.arange(num_classes).repeat(per_class)
    noise = torch.randn(len(labels), dim, generator=generator)
    return centres[labels] + spread * noise, labels


def test_the_probe_reaches_the_optimum_of_its_objective():
    features, labels = clusters(spread=2.0)
    weight_decay = 0.01
    probe = fit(features, labels, 4, weight_decay=weight_decay)
    inputs = (features - features.mean(0)) / features.std(0, correction=0)
    weight = probe.weight.clone().requires_grad_()
    bias = probe.bias.clone().requires_grad_()
    loss = F.cross_entropy(F.linear(inputs, weight, bias), labels)
    (loss + weight_decay / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_features_changes_nothing(scale):
    features, labels = clusters(spread=2.0)
    probe = fit(features * scale, labels, 4, weight_decay=0.01)
    reference = fit(features, labels, 4, weight_decay=0.01)
    assert probe.score(features * scale, labels).value == pytest.approx(
        reference.score(features, labels).value, abs=0.02
    )


def test_a_feature_that_never_varies_does_no_harm():
    features, labels = clusters()
    features[:, 0] = 3.0
    score = fit(features, labels, 4, weight_decay=0.001).score(features, labels)
    assert score.value > 0.95
    assert math.isfinite(score.loss)


def test_the_start_changes_nothing_but_the_time():
    features, labels = clusters(spread=2.0)
    strong = fit(features, labels, 4, weight_decay=1.0)
    warm = fit(features, labels, 4, weight_decay=0.01, start=strong)
    cold = fit(features, labels, 4, weight_decay=0.01)
    torch.testing.assert_close(warm(features), cold(features), atol=1e-2, rtol=1e-2)


def test_classes_without_an_image_keep_their_place():
    features, labels = clusters()
    probe = fit(features, labels, 7, weight_decay=0.01)
    assert probe(features).shape == (120, 7)
    assert probe.score(features, labels).value > 0.95


def test_every_result_has_its_baseline_with_the_same_labels(subject, geometry):
    results = LinearProbe(
        geometry, label_fractions=(0.5, 1.0), seeds=2, weight_decays=(1e-3, 1e-1)
    ).run(subject)
    keys = {(r.init, r.seed, r.protocol["label_fraction"]) for r in results}
    assert len(results) == len(keys) == 12
    assert {r.init for r in results} == {"pretrained", "random", "pixels"}
    for result in results:
        assert result.protocol["num_labels"] == 120 * result.protocol["label_fraction"]
        assert result.chosen["weight_decay"] in (1e-3, 1e-1)


def test_the_weight_decay_is_chosen_without_the_test_images(subject, geometry, tmp_path):
    evaluator = LinearProbe(geometry, seeds=2, weight_decays=(1e-2, 1e-1))
    before, after = (
        [r.chosen for r in results] for results in right_and_wrong(evaluator, subject, tmp_path)
    )
    assert before == after


def right_and_wrong(evaluator, subject, tmp_path):
    """Results on the test images, and on the same with other labels; nothing kept between."""
    wrong = dataclasses.replace(subject.test, labels=subject.test.labels.roll(1))
    other = dataclasses.replace(subject, test=wrong, workdir=tmp_path / "other")
    return evaluator.run(subject), evaluator.run(other)


def test_a_penalty_that_forbids_learning_is_not_chosen(subject, geometry, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def informative(encoder, subject, source, index, pools, *, layers):
        noise = 0.2 * torch.randn(len(index), 10, generator=generator)
        return [{pool: F.one_hot(source.labels[index], 10) + noise for pool in pools}]

    monkeypatch.setattr("mimkit.evaluate.linear.extract_layers", informative)
    result = LinearProbe(geometry, weight_decays=(1e4, 1e-2)).run(subject)[0]
    assert result.chosen["weight_decay"] == 1e-2
    assert result.value > 0.5


def test_unlabelled_images_are_not_encoded(subject, geometry, monkeypatch):
    labels = subject.train.labels.clone()
    labels[::2] = -1
    encoder = subject.pretrainer.encoder
    encode, sizes = encoder.features, []

    def features(image):
        sizes.append(len(image))
        return encode(image)

    monkeypatch.setattr(encoder, "features", features)
    half = dataclasses.replace(subject, train=dataclasses.replace(subject.train, labels=labels))
    result = LinearProbe(geometry, weight_decays=(0.1,)).run(half)[0]
    assert sum(sizes) == 1 + 60 + 40  # one image shows how many layers there are
    assert result.protocol["num_labels"] == 60


def test_features_and_labels_are_those_of_the_same_images(subject, geometry, monkeypatch):
    """The features are the number of the image; some images have no label, some no subset."""
    known = subject.train.labels.clone()
    known[::3] = -1
    fitted = []

    def numbered(encoder, subject, source, index, pools, *, layers):
        return [{pool: index.float()[:, None] for pool in pools}]

    def watched(features, labels, num_classes, **options):
        fitted.append(features[:, 0].long())
        assert torch.equal(known[fitted[-1]], labels)
        return fit(features, labels, num_classes, **options)

    monkeypatch.setattr("mimkit.evaluate.linear.extract_layers", numbered)
    monkeypatch.setattr(
        "mimkit.evaluate.linear.pixels", lambda _, source, index, side: index.float()[:, None]
    )
    monkeypatch.setattr("mimkit.evaluate.linear.fit", watched)
    some = dataclasses.replace(subject, train=dataclasses.replace(subject.train, labels=known))
    evaluator = LinearProbe(geometry, label_fractions=(0.5,), seeds=2, weight_decays=(1e-2, 1e-1))
    evaluator.run(some)
    final = fitted[2::3]
    for number, images in enumerate(final):  # pre-trained, random, pixels
        assert torch.equal(images, stratified_subset(known, 0.5, number % 2))  # as in fine-tuning
    assert len(final) == 6


def test_images_of_no_subset_are_not_encoded(subject, geometry, monkeypatch):
    encoder = subject.pretrainer.encoder
    encode, sizes = encoder.features, []

    def features(image):
        sizes.append(len(image))
        return encode(image)

    monkeypatch.setattr(encoder, "features", features)
    LinearProbe(geometry, label_fractions=(0.1, 0.2), weight_decays=(0.1,)).run(subject)
    assert sum(sizes) == 1 + len(stratified_subset(subject.train.labels, 0.2, 0)) + 40


def test_too_few_labels_to_choose_on_are_refused_before_training(subject, geometry):
    with pytest.raises(RecipeError, match="no class has two labelled images"):
        LinearProbe(geometry, label_fractions=(0.01,)).check(subject)


@pytest.mark.parametrize("option", [{"weight_decays": ()}, {"label_fractions": ()}, {"pools": ()}])
def test_nothing_to_do_is_refused(geometry, option):
    with pytest.raises(RecipeError, match="at least"):
        LinearProbe(geometry, **option)


def test_the_random_state_stays_as_it_was(subject, geometry):
    state = torch.random.get_rng_state()
    LinearProbe(geometry, weight_decays=(0.1,)).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())


def every_layer(geometry, **options):
    return LinearProbe(geometry, layers="all", pools=("mean", "cls"), **options)


def by_layer(results, init="pretrained", pool="mean"):
    return {
        result.protocol["layer"]: result
        for result in results
        if (result.init, result.protocol["pool"]) == (init, pool)
    }


def test_every_layer_and_pool_has_a_result_and_one_is_chosen(subject, geometry):
    results = every_layer(geometry, weight_decays=(0.1,)).run(subject)
    assert len(results) == 2 * 2 * 3 + 2
    for init in ("pretrained", "random"):
        for pool in ("mean", "cls"):
            found = by_layer(results, init, pool)
            chosen = found.pop("chosen on development images")
            assert list(found) == [1, 2]
            assert {result.protocol["num_layers"] for result in found.values()} == {2}
            assert chosen.value == found[chosen.chosen["layer"]].value


def test_the_chosen_layer_is_the_best_on_development_images_whatever_the_test_labels(
    subject, geometry, tmp_path
):
    evaluator = every_layer(geometry, weight_decays=(1e-2, 1e-1))
    right, wrong = right_and_wrong(evaluator, subject, tmp_path)
    assert [r.chosen for r in right] == [r.chosen for r in wrong]
    assert [r.image_scores for r in right] != [r.image_scores for r in wrong]
    for init in ("pretrained", "random"):
        found = by_layer(right, init)
        chosen = found.pop("chosen on development images").chosen
        assert chosen["development_accuracy"] == max(
            result.chosen["development_accuracy"] for result in found.values()
        )


def test_the_last_of_all_layers_is_the_last_layer(subject, geometry):
    options = {"weight_decays": (1e-2, 1e-1), "pools": ("mean", "cls", "cls_mean")}
    every = LinearProbe(geometry, layers="all", **options).run(subject)
    last = LinearProbe(geometry, **options).run(subject)
    for pool in options["pools"]:
        alone = by_layer(last, pool=pool)["last"]
        among = by_layer(every, pool=pool)[2]
        assert (alone.value, alone.chosen) == (among.value, among.chosen)


def test_both_pools_side_by_side_are_one_feature_vector(subject, geometry, monkeypatch):
    widths = []

    def watched(features, labels, num_classes, **options):
        widths.append(features.shape[1])
        return fit(features, labels, num_classes, **options)

    monkeypatch.setattr("mimkit.evaluate.linear.fit", watched)
    LinearProbe(geometry, pools=("cls_mean",), weight_decays=(0.1,)).run(subject)
    assert widths == [2 * 16, 2 * 16, 3 * 16 * 16]  # the last of pixels, which nothing pools


def test_every_image_is_encoded_once_for_all_layers_pools_seeds_and_fractions(
    subject, geometry, monkeypatch
):
    encoder = subject.pretrainer.encoder
    encode, sizes = encoder.layers, []

    def layers(image):
        sizes.append(len(image))
        return encode(image)

    monkeypatch.setattr(encoder, "layers", layers)
    evaluator = every_layer(
        geometry, weight_decays=(0.1,), seeds=2, label_fractions=(0.5, 1.0), num_test_images=20
    )
    evaluator.run(subject)
    assert sum(sizes) == 1 + 120 + 20  # one image shows how many layers there are


def test_a_killed_run_repeats_no_finished_layer(subject, geometry, monkeypatch):
    evaluator = every_layer(geometry, weight_decays=(1e-2, 1e-1))
    whole = evaluator.run(dataclasses.replace(subject, workdir=subject.workdir / "whole"))
    finished, trained = [], []

    def killed(text):
        finished.append(text)
        if len(finished) == 3:
            raise KeyboardInterrupt

    def counted(features, labels, num_classes, **options):
        trained.append(len(features))
        return fit(features, labels, num_classes, **options)

    with pytest.raises(KeyboardInterrupt):
        evaluator.run(dataclasses.replace(subject, report=killed))
    monkeypatch.setattr("mimkit.evaluate.linear.fit", counted)
    assert evaluator.run(subject) == whole
    assert len(trained) == 3 * (9 - 3 + 1)  # the killed one had not been written down
    assert evaluator.run(subject) == whole
    assert len(trained) == 3 * (9 - 3 + 1)


def test_finished_cells_of_an_encoder_need_no_features(subject, geometry, monkeypatch):
    evaluator = LinearProbe(geometry, weight_decays=(0.1,))
    before = evaluator.run(subject)
    encoder = subject.pretrainer.encoder
    encode, sizes = encoder.features, []

    def features(image):
        sizes.append(len(image))
        return encode(image)

    monkeypatch.setattr(encoder, "features", features)
    assert evaluator.run(subject) == before
    assert sizes == []


@pytest.mark.parametrize("layers", ["last", "all"])
def test_raw_pixels_stand_beside_every_pool_and_are_fitted_once(
    subject, geometry, monkeypatch, layers
):
    fitted = []

    def counted(features, labels, num_classes, **options):
        fitted.append(features.shape[1])
        return fit(features, labels, num_classes, **options)

    monkeypatch.setattr("mimkit.evaluate.linear.fit", counted)
    options = {"pools": ("mean", "cls"), "weight_decays": (1e-2, 1e-1), "seeds": 2}
    results = LinearProbe(geometry, layers=layers, **options).run(subject)
    found = [result for result in results if result.init == "pixels"]
    assert fitted.count(3 * 16 * 16) == 3 * 2
    for result in found:
        beside = [r.init for r in results if (r.seed, r.protocol) == (result.seed, result.protocol)]
        assert sorted(beside) == ["pixels", "pretrained", "random"]
    for seed in (0, 1):
        mean, cls = (r for r in found if r.seed == seed)
        assert (mean.value, mean.chosen) == (cls.value, cls.chosen)
        assert "layer" not in mean.chosen


def test_pixels_are_averaged_to_a_small_size_and_tell_what_they_show(subject, geometry):
    """Bright images are one class, dark ones the other."""

    def shade(source):
        labels = torch.arange(len(source)) % 2
        pixels = (60 + 120 * labels.to(torch.uint8))[:, None, None, None].expand(-1, 3, 48, 48)
        sizes = torch.full((len(source), 2), 48, dtype=torch.int32)
        return dataclasses.replace(
            source,
            pixels=pixels.contiguous(),
            sizes=sizes,
            labels=labels,
            classes=("dark", "bright"),
        )

    shaded = dataclasses.replace(subject, train=shade(subject.train), test=shade(subject.test))
    results = LinearProbe(geometry, weight_decays=(0.1,)).run(shaded)
    assert {r.init: r.value for r in results}["pixels"] == 1.0


def test_other_weights_are_measured_anew(subject, geometry):
    evaluator = LinearProbe(geometry, weight_decays=(0.1,))
    before = evaluator.run(subject)
    with torch.no_grad():
        subject.pretrainer.encoder.patch_embed.proj.weight.mul_(3.0)
    after = evaluator.run(subject)
    # That accuracies of 40 images differ is likely, no more.
    lines = (subject.workdir / "cells.jsonl").read_text().splitlines()
    inits = [json.loads(line)["init"] for line in lines]
    assert inits == ["pretrained", "random", "pixels", "pretrained"]
    assert by_layer(before, "random") == by_layer(after, "random")


def test_a_choice_among_layers_needs_development_images_too(subject, geometry):
    options = {"weight_decays": (0.1,), "label_fractions": (0.01,)}
    LinearProbe(geometry, **options).check(subject)
    with pytest.raises(RecipeError, match="no class has two labelled images"):
        LinearProbe(geometry, layers="all", **options).check(subject)


@pytest.mark.parametrize("pool", ["cls", "cls_mean"])
def test_a_missing_class_token_is_refused_before_training(subject, geometry, pool):
    subject.pretrainer.encoder.cls_token = None
    subject.pretrainer.encoder.num_prefix = 0
    with pytest.raises(RecipeError, match="needs an encoder with a class token"):
        LinearProbe(geometry, layers="all", pools=("mean", pool)).check(subject)
    LinearProbe(geometry, layers="all").check(subject)


def test_an_encoder_that_gives_only_its_last_layer_has_one(subject, geometry, monkeypatch):
    encoder = subject.pretrainer.encoder
    monkeypatch.setattr(encoder, "layers", lambda image: (encoder.features(image),))
    results = LinearProbe(geometry, layers="all", weight_decays=(0.1,)).run(
        dataclasses.replace(subject, fresh=lambda seed: subject.pretrainer)
    )
    assert set(by_layer(results)) == {1, "chosen on development images"}


def test_the_final_probe_is_fitted_on_from_the_chosen_one(subject, geometry, monkeypatch):
    """What is judged on test images must be trained as far as what was chosen."""
    starts = []

    def watched(features, labels, num_classes, *, weight_decay, start=None):
        starts.append((weight_decay, start is not None))
        return fit(features, labels, num_classes, weight_decay=weight_decay, start=start)

    monkeypatch.setattr("mimkit.evaluate.linear.fit", watched)
    result = LinearProbe(geometry, weight_decays=(1e-2, 1e-1)).run(subject)[0]
    assert starts[:3] == [(1e-1, False), (1e-2, True), (result.chosen["weight_decay"], True)]
