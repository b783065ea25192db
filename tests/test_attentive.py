import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.attentive import AttentiveProbe, even_batch
from mimkit.evaluate.cross_attention import AttentiveClassifier, choose_heads, standardise
from mimkit.evaluate.pixel_tokens import PixelTokens
from mimkit.evaluate.statistics import summarise
from mimkit.parts.records import Tokens

QUICK = {"total_steps": 6, "batch_size": 16, "warmup_steps": 1}


def cells(subject):
    path = subject.workdir / "cells.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def watch(encoder, monkeypatch):
    """Counts the images that an encoder sees."""
    encode, sizes = encoder.features, []

    def features(image):
        sizes.append(len(image))
        return encode(image)

    monkeypatch.setattr(encoder, "features", features)
    return sizes


# --------------------------------------------------------------------------------- the classifier


def written_out(model, tokens):
    """The published formulas, key by key and value by value, from unnormalised tokens."""
    heads, dim = model.num_heads, tokens.shape[-1]
    query = F.layer_norm(model.query, (dim,), model.norm_query.weight, model.norm_query.bias, 1e-6)
    query = (model.to_query.weight @ query + model.to_query.bias).view(heads, 1, -1)
    key = F.layer_norm(tokens, (dim,), model.key_scale, torch.randn(dim), 1e-6)
    key = (key @ model.to_key.weight.T).unflatten(-1, (heads, -1)).transpose(1, 2)
    value = F.layer_norm(tokens, (dim,), model.value_scale, torch.randn(dim), 1e-6)
    value = value @ model.to_value.weight.T + torch.randn(dim)
    value = value.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = query @ key.transpose(-1, -2) / (dim / heads) ** 0.5
    found = (scores.softmax(-1) @ value).flatten(1)
    found = found @ model.project.weight.T + torch.randn(dim)
    mean, variance = found.mean(0), found.var(0, correction=0)
    found = (found - mean) / (variance + 1e-6).sqrt()
    return found @ model.output.weight.T + model.output.bias


@pytest.mark.parametrize("num_heads", [1, 4])
def test_the_classifier_is_attention_written_out(num_heads):
    """Also for any shift of keys, values and sums, which it leaves out."""
    torch.manual_seed(0)
    model, tokens = AttentiveClassifier(16, 5, num_heads).train(), torch.randn(8, 7, 16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    expected = written_out(model, tokens)
    torch.testing.assert_close(model(standardise(tokens)), expected, atol=1e-4, rtol=1e-4)


def test_it_starts_with_the_mean_of_all_tokens():
    torch.manual_seed(0)
    model, tokens = AttentiveClassifier(16, 5, 4).train(), standardise(torch.randn(8, 7, 16))
    mixed = tokens[:, torch.randperm(7)]
    same = tokens.mean(dim=1, keepdim=True).expand(-1, 7, -1)
    for other in (mixed, same):
        torch.testing.assert_close(model(other), model(tokens), atol=1e-5, rtol=1e-5)
    assert model.query.eq(0).all()
    assert model.output.weight.std().item() == pytest.approx(0.01, rel=0.3)


def test_every_parameter_learns_from_the_first_step_or_the_second():
    """A query of zero finds no direction for the keys, until it has moved."""
    torch.manual_seed(0)
    model, tokens = AttentiveClassifier(16, 5, 4), standardise(torch.randn(64, 7, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), torch.arange(64) % 5).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 1e-9, name


def test_attention_finds_what_the_mean_does_not_show():
    """One token of many says the class, and another property says which token."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 4
    tokens = torch.randn(256, 12, 16, generator=generator)
    tokens[..., 0] = 0
    place = torch.randint(12, (256,), generator=generator)
    tokens[torch.arange(256), place, 0] = 6
    tokens[torch.arange(256), place, 1:5] = 3 * F.one_hot(labels, 4).float()
    torch.manual_seed(0)
    model, tokens = AttentiveClassifier(16, 4, 4), standardise(tokens)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
    assert (model(tokens).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (384, 12), (192, 12), (1024, 8), (7, 7)])
def test_as_many_heads_as_divide_the_width(width, heads):
    assert choose_heads(width, None) == heads


def test_heads_that_do_not_divide_the_width_are_refused(subject, geometry):
    with pytest.raises(RecipeError, match="must divide the tokens' width 16, but is 3"):
        AttentiveProbe(geometry, num_heads=3, **QUICK).check(subject)


# ------------------------------------------------------------------------------------- protocol


def test_every_result_has_its_baseline_with_the_same_labels(subject, geometry):
    evaluator = AttentiveProbe(geometry, label_fractions=(0.25, 0.5), seeds=2, **QUICK)
    evaluator.check(subject)
    results = evaluator.run(subject)
    keys = {(r.init, r.seed, r.protocol["label_fraction"]) for r in results}
    assert len(results) == len(keys) == 12
    assert {r.init for r in results} == {"pretrained", "random", "pixels"}
    for result in results:
        assert result.protocol["num_labels"] == 120 * result.protocol["label_fraction"]
        assert result.chosen["num_heads"] == (12 if result.init == "pixels" else 8)
        assert result.num_images == 40
        assert 0 <= result.value <= 1


def test_it_learns(subject, geometry):
    """Drawn shapes, and an encoder that says of each token what class the image has."""
    encoder = subject.pretrainer.encoder
    colours = torch.randn(10, 16, generator=torch.Generator().manual_seed(0))
    known = {}
    for source in (subject.train, subject.test):
        whole = source.view(torch.arange(len(source)), subject.view)
        for image, label in zip(whole, source.labels, strict=True):
            known[image.numpy().tobytes()] = int(label)

    def features(image):
        labels = torch.tensor([known[each.numpy().tobytes()] for each in image])
        patches = colours[labels][:, None].expand(-1, 4, -1) + 0.5 * torch.randn(len(image), 4, 16)
        return Tokens(patches, patches[:, :0], torch.arange(4).expand(len(image), -1))

    encoder.features = features
    options = {**QUICK, "total_steps": 60, "lrs": (1e-9, 0.1)}
    ours, random, _ = AttentiveProbe(geometry, **options).run(subject)
    assert ours.value > 0.9
    assert ours.chosen["lr"] == 0.1
    assert random.value < 0.6


def test_the_learning_rate_is_chosen_on_development_images_alone(subject, geometry):
    lrs = (1e-9, 0.1)
    evaluator = AttentiveProbe(geometry, lrs=lrs, seeds=2, **{**QUICK, "total_steps": 40})
    results = evaluator.run(subject)
    searched = [cell for cell in cells(subject) if cell["split"] == "development"]
    # Once for each start and seed.
    assert sorted((cell["init"], cell["lr"], cell["seed"]) for cell in searched) == sorted(
        (init, lr, seed)
        for init in ("pretrained", "random", "pixels")
        for lr in lrs
        for seed in (0, 1)
    )
    for result in results:
        best = max(
            (c for c in searched if (c["init"], c["seed"]) == (result.init, result.seed)),
            key=lambda cell: (cell["accuracy"], -cell["loss"]),
        )
        assert result.chosen["lr"] == best["lr"]


def test_other_test_labels_change_no_choice(subject, geometry, tmp_path):
    evaluator = AttentiveProbe(geometry, lrs=(0.01, 0.1), **QUICK)
    wrong = dataclasses.replace(subject.test, labels=subject.test.labels.roll(1))
    other = dataclasses.replace(subject, test=wrong, workdir=tmp_path / "other")
    assert [r.chosen for r in evaluator.run(subject)] == [r.chosen for r in evaluator.run(other)]


def test_class_token_and_patches_are_read_or_the_patches_alone(subject, geometry, monkeypatch):
    seen = []
    forward = AttentiveClassifier.forward

    def watched(self, tokens):
        seen.append(tuple(tokens.shape[1:]))
        return forward(self, tokens)

    monkeypatch.setattr(AttentiveClassifier, "forward", watched)
    AttentiveProbe(geometry, lrs=(0.1,), **QUICK).run(subject)
    encoder = subject.pretrainer.encoder
    encode = encoder.features

    def features(image):
        tokens = encode(image)
        return dataclasses.replace(tokens, prefix=tokens.prefix[:, :0])

    monkeypatch.setattr(encoder, "features", features)
    bare = dataclasses.replace(subject, workdir=subject.workdir / "bare")
    AttentiveProbe(geometry, lrs=(0.1,), **QUICK).run(bare)
    assert set(seen) == {(17, 16), (16, 16), (16, 96)}  # the last are pieces of the image


@pytest.mark.parametrize(
    "change",
    [
        {"batch_norm": "batch"},
        {"num_heads": 2},
        {"total_steps": 5},
        {"batch_size": 8},
        {"warmup_steps": 0},
        {"lrs": (0.05,)},
        {"num_test_images": 20},
    ],
)
def test_evaluations_by_another_protocol_are_never_taken_together(subject, geometry, change):
    options = {"lrs": (0.1,), **QUICK}
    results = AttentiveProbe(geometry, **options).run(subject)
    results += AttentiveProbe(geometry, **(options | change)).run(subject)
    assert len(summarise(results)["summaries"]) == 6


# ------------------------------------------------------------------------------ batch statistics


def test_running_statistics_judge_each_image_alone_and_batch_statistics_do_not(
    subject, geometry, monkeypatch
):
    """A result must not depend on who else is judged, unless that is asked for."""
    judged = {}
    forward = AttentiveClassifier.forward

    def watched(self, tokens):
        logits = forward(self, tokens)
        if not torch.is_grad_enabled():
            judged[self.training] = (self, tokens, logits)
        return logits

    monkeypatch.setattr(AttentiveClassifier, "forward", watched)
    for mode in ("running", "batch"):
        AttentiveProbe(geometry, lrs=(0.1,), batch_norm=mode, **QUICK).run(subject)
    with torch.no_grad():
        model, tokens, logits = judged[False]
        torch.testing.assert_close(forward(model, tokens[3:5]), logits[3:5])
        model, tokens, logits = judged[True]
        assert not torch.allclose(forward(model, tokens[3:5]), logits[3:5], atol=1e-3)


def test_batches_that_are_judged_together_are_mixed_and_even(subject, geometry, monkeypatch):
    sizes, labels = [], []
    forward = AttentiveClassifier.forward

    def watched(self, tokens):
        if not torch.is_grad_enabled():
            sizes.append(len(tokens))
        return forward(self, tokens)

    entropy = F.cross_entropy

    def listening(logits, truth, **options):
        if options:
            labels.append(truth)
        return entropy(logits, truth, **options)

    monkeypatch.setattr(AttentiveClassifier, "forward", watched)
    monkeypatch.setattr("mimkit.evaluate.attentive.F.cross_entropy", listening)
    order = subject.test.labels.argsort(stable=True)
    by_class = dataclasses.replace(
        subject.test, pixels=subject.test.pixels[order], labels=subject.test.labels[order]
    )
    AttentiveProbe(geometry, lrs=(0.1,), batch_norm="batch", **QUICK).run(
        dataclasses.replace(subject, test=by_class)
    )
    assert sizes == [16, 16, 8] * 3
    assert all(len(truth.unique()) > 2 for truth in labels)
    assert sorted(torch.cat(labels[:3]).tolist()) == sorted(by_class.labels.tolist())


@pytest.mark.parametrize("num_images", [2, 3, 5, 17, 23, 802])
def test_no_batch_of_one_is_ever_normalised_by_itself(num_images):
    size = even_batch(num_images, 2)
    last = num_images % size or size
    assert size >= 2
    assert 2 * last >= size


def test_a_single_image_has_no_statistics(subject, geometry):
    options = {"batch_norm": "batch", "lrs": (0.1,), **QUICK}
    one = subject.test.labels.clone()
    one[1:] = -1
    lonely = dataclasses.replace(subject, test=dataclasses.replace(subject.test, labels=one))
    with pytest.raises(RecipeError, match=r"needs at least two images to judge, .* there is 1"):
        AttentiveProbe(geometry, **options).check(lonely)
    AttentiveProbe(geometry, **(options | {"batch_norm": "running"})).check(lonely)


# --------------------------------------------------------------------------- cache and repetition


def test_tokens_are_made_once_or_anew_with_the_same_result(subject, geometry, monkeypatch):
    options = {"lrs": (0.03, 0.1), "seeds": 2, "label_fractions": (0.5, 1.0), **QUICK}
    sizes = watch(subject.pretrainer.encoder, monkeypatch)
    kept = AttentiveProbe(geometry, **options).run(subject)
    assert sum(sizes) == 1 + 120 + 40  # one image shows how large tokens are
    sizes.clear()
    said = []
    anew = dataclasses.replace(subject, workdir=subject.workdir / "anew", report=said.append)
    again = AttentiveProbe(geometry, cache_gib=0.0, **options).run(anew)
    assert sum(sizes) > 8 * 6 * 16
    assert any("every batch is encoded anew" in line for line in said)
    for before, after in zip(kept, again, strict=True):
        assert before.chosen == after.chosen
        assert before.value == pytest.approx(after.value, abs=0.026)


def test_images_that_no_subset_holds_are_not_encoded(subject, geometry, monkeypatch):
    sizes = watch(subject.pretrainer.encoder, monkeypatch)
    AttentiveProbe(geometry, lrs=(0.1,), label_fractions=(0.25,), num_test_images=20, **QUICK).run(
        subject
    )
    assert sum(sizes) == 1 + 30 + 20


def test_a_killed_run_repeats_nothing_that_was_finished(subject, geometry, monkeypatch):
    evaluator = AttentiveProbe(geometry, lrs=(0.03, 0.1), seeds=2, **QUICK)
    whole = evaluator.run(dataclasses.replace(subject, workdir=subject.workdir / "whole"))
    finished, trained = [], []

    def killed(text):
        finished.append(text)
        if len(finished) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.run(dataclasses.replace(subject, report=killed, detail=killed))
    assert len(cells(subject)) == 3
    fresh = AttentiveClassifier.__init__

    def counted(self, *arguments):
        trained.append(arguments)
        fresh(self, *arguments)

    monkeypatch.setattr(AttentiveClassifier, "__init__", counted)
    assert evaluator.run(subject) == whole
    assert len(trained) == 18 - 3
    assert evaluator.run(subject) == whole
    assert len(trained) == 18 - 3


def test_finished_cells_need_no_tokens(subject, geometry, monkeypatch):
    evaluator = AttentiveProbe(geometry, lrs=(0.1,), **QUICK)
    before = evaluator.run(subject)
    sizes = watch(subject.pretrainer.encoder, monkeypatch)
    assert evaluator.run(subject) == before
    assert sizes == []


def test_other_weights_are_measured_anew(subject, geometry):
    evaluator = AttentiveProbe(geometry, lrs=(0.1,), **QUICK)
    evaluator.run(subject)
    with torch.no_grad():
        subject.pretrainer.encoder.patch_embed.proj.weight.mul_(3.0)
    evaluator.run(subject)
    inits = [cell["init"] for cell in cells(subject)]
    assert inits == ["pretrained", "random", "pixels", "pretrained"]


def test_the_same_evaluation_gives_the_same_numbers(subject, geometry):
    evaluator = AttentiveProbe(geometry, lrs=(0.1,), **QUICK)
    first = evaluator.run(subject)
    (subject.workdir / "cells.jsonl").unlink()
    assert evaluator.run(subject) == first


def test_the_subject_and_the_random_state_stay_as_they_were(subject, geometry):
    subject.pretrainer.train()
    before = {name: value.clone() for name, value in subject.pretrainer.state_dict().items()}
    state = torch.random.get_rng_state()
    evaluator = AttentiveProbe(geometry, lrs=(0.1,), **QUICK)
    evaluator.check(subject)
    evaluator.run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in subject.pretrainer.modules())
    for name, value in subject.pretrainer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_diverged_training_is_said_and_never_chosen(subject, geometry):
    said, details = [], []
    evaluator = AttentiveProbe(geometry, lrs=(1e30, 0.01), **QUICK)
    told = dataclasses.replace(subject, report=said.append, detail=details.append)
    ours, *_ = evaluator.run(told)
    assert ours.chosen["lr"] == 0.01
    assert [line.endswith("(diverged)") for line in details[:2]] == [True, False]
    assert all("test images" in line for line in said)


# -------------------------------------------------------------------------------------- refusals


def test_unlabelled_images_are_refused_before_training(subject, geometry):
    bare = dataclasses.replace(subject.train, labels=None)
    with pytest.raises(DataError, match="evaluator 'attentive_probe' needs labels"):
        AttentiveProbe(geometry, **QUICK).check(dataclasses.replace(subject, train=bare))


def test_too_few_labels_to_choose_on_are_refused_before_training(subject, geometry):
    with pytest.raises(RecipeError, match="no class has two labelled images"):
        AttentiveProbe(geometry, label_fractions=(0.01,), **QUICK).check(subject)
    AttentiveProbe(geometry, label_fractions=(0.01,), lrs=(0.1,), **QUICK).check(subject)


@pytest.mark.parametrize(
    "option",
    [{"lrs": ()}, {"label_fractions": ()}],
)
def test_nothing_to_do_is_refused(geometry, option):
    with pytest.raises(RecipeError, match="at least"):
        AttentiveProbe(geometry, **option)


# ---------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("size", "grid"),
    [((32, 32), (8, 8)), ((224, 224), (8, 8)), ((16, 30), (4, 7)), ((3, 5), (1, 1))],
)
def test_pixel_tokens_are_pieces_of_the_image_with_their_positions(size, grid):
    image = torch.rand(2, 3, *size)
    tokens = PixelTokens(3, None).features(image)
    assert tokens.patches.shape == (2, grid[0] * grid[1], 96)
    assert tokens.prefix.shape == (2, 0, 96)
    pixels, places = tokens.patches.split([48, 48], dim=2)
    mean = pixels.unflatten(2, (3, 16)).mean(dim=(1, 3))
    if size[0] % 32 == size[1] % 32 == 0:
        torch.testing.assert_close(mean, image.mean(dim=(2, 3)))
    assert torch.equal(places[0], places[1])
    assert len(places[0].unique(dim=0)) == grid[0] * grid[1]


@pytest.mark.parametrize(("channels", "heads"), [(1, None), (3, 16), (4, 5), (13, 12)])
def test_pixel_tokens_are_as_wide_as_the_heads_need(channels, heads):
    tokens = PixelTokens(channels, heads)
    assert tokens.embed_dim % (heads or 12) == 0
    assert tokens.features(torch.rand(1, channels, 16, 16)).patches.shape[2] == tokens.embed_dim


def test_a_probe_of_pixels_sees_where_things_are():
    """A bright piece in the upper half or in the lower one: the mean of all pieces is the same."""
    labels = torch.arange(160) % 2
    image = torch.zeros(160, 3, 16, 16)
    for number, label in enumerate(labels.tolist()):
        row, column = 8 * label + 4 * (number % 4 // 2), 4 * (number % 16 // 4)
        image[number, :, row : row + 4, column : column + 4] = 2.0
    tokens = standardise(PixelTokens(3, None).features(image).patches)
    torch.manual_seed(0)
    model = AttentiveClassifier(96, 2, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
    assert (model(tokens).argmax(1) == labels).float().mean() > 0.95
