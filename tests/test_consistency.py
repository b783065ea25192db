import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mimkit import Tokens
from mimkit.data.pixels.augment import Augment
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.consistency import VARIATION, KNNConsistency, shared_neighbours
from mimkit.evaluate.images import Renderings, WholeImages


def features(count=60, dim=8, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def consistency(one, other, k, seed):
    return float(shared_neighbours(one, other, k, seed).double().mean() / k)


def written_out(one, other, k):
    shared = 0
    for image in range(len(one)):
        found = []
        for query, among in ((one, other), (other, one)):
            near = F.cosine_similarity(query[image], among, dim=1)
            near[image] = -2
            found.append(set(near.argsort(descending=True)[:k].tolist()))
        shared += len(found[0] & found[1])
    return shared / (k * len(one))


def test_it_is_the_share_of_neighbours_among_the_others_renderings():
    one, other = features(seed=0), features(seed=0) + 0.5 * features(seed=1)
    value = consistency(one, other, 5, seed=0)
    assert value == pytest.approx(written_out(one, other, 5))
    assert 0.2 < value < 0.9


def test_equal_renderings_agree_and_unrelated_ones_agree_by_chance():
    one = features(400)
    assert consistency(one, one, 10, seed=0) == 1.0
    # 4,000 neighbours, of which each is shared with probability 10 / 399.
    assert consistency(one, features(400, seed=1), 10, seed=0) == pytest.approx(10 / 399, abs=0.012)


def test_a_collapsed_encoder_agrees_by_chance_too():
    """All similarities are equal: neighbours are whatever the order of ties makes of them."""
    same = torch.ones(400, 8)
    assert consistency(same, same, 10, seed=0) == pytest.approx(10 / 399, abs=0.012)


def test_the_length_of_features_changes_nothing():
    one, other = features(seed=0), features(seed=0) + 0.5 * features(seed=1)
    longer = one * torch.arange(1, 61)[:, None]
    assert consistency(longer, other, 5, seed=0) == consistency(one, other, 5, seed=0)


def test_a_chunked_search_equals_the_whole(monkeypatch):
    one, other = features(seed=0), features(seed=0) + 0.5 * features(seed=1)
    whole = consistency(one, other, 5, seed=0)
    monkeypatch.setattr("mimkit.evaluate.consistency._CHUNK_SIMILARITIES", 7 * 60)
    assert consistency(one, other, 5, seed=0) == whole


def by_init(results):
    return {result.init: result for result in results}


def test_no_label_is_needed_and_both_baselines_are_there(subject, geometry):
    bare = dataclasses.replace(
        subject,
        train=dataclasses.replace(subject.train, labels=None, classes=()),
        test=dataclasses.replace(subject.test, labels=None, classes=()),
    )
    evaluator = KNNConsistency(geometry)
    evaluator.check(bare)
    results = by_init(evaluator.run(bare))
    assert results.keys() == {"pretrained", "random", "pixels"}
    for result in results.values():
        assert (result.evaluator, result.metric) == ("knn_consistency", "consistency")
        assert result.protocol == {"k": 10, "pool": "mean", "num_images": 40}
        assert 0 <= result.value <= 1
    assert results["pretrained"].value == results["random"].value  # nothing was learned
    assert not KNNConsistency.needs_labels


def test_an_encoder_that_knows_the_image_whatever_the_crop_is_consistent(
    subject, geometry, monkeypatch
):
    """Every image has one colour of its own, and the encoder reads the mean colour."""
    colour = torch.randint(0, 256, (40, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    pixels = colour.to(torch.uint8).expand(-1, -1, 16, 16).contiguous()
    plain = dataclasses.replace(subject, test=dataclasses.replace(subject.test, pixels=pixels))

    def mean_colour(image):
        tokens = image.mean((2, 3))[:, None]
        return Tokens(tokens, tokens[:, :0], torch.zeros(len(image), 1, dtype=torch.int64))

    monkeypatch.setattr(subject.pretrainer.encoder, "features", mean_colour)
    assert by_init(KNNConsistency(geometry, k=5).run(plain))["pretrained"].value > 0.95


def test_every_method_sees_the_same_renderings(subject, geometry, monkeypatch, tmp_path):
    """Whatever the recipe's augmentation, and however often others drew from torch."""
    encoder = subject.pretrainer.encoder
    encode, seen = encoder.features, []

    def watched(image):
        seen.append(image.clone())
        return encode(image)

    monkeypatch.setattr(encoder, "features", watched)
    other = dataclasses.replace(
        subject, augment=Augment(crop="none", color_jitter=0.9), workdir=tmp_path / "other"
    )
    for judged in (subject, other):
        torch.manual_seed(len(seen))
        KNNConsistency(geometry).run(judged)
    assert len(seen) == 4
    torch.testing.assert_close(seen[:2], seen[2:])
    assert not torch.equal(seen[0], seen[1])
    KNNConsistency(geometry).run(dataclasses.replace(subject, seed=1))
    assert not torch.equal(seen[0], seen[4])


def test_renderings_are_cropped_and_flipped_and_do_not_depend_on_the_batch(subject):
    index = torch.tensor([5, 0, 31, 12, 7, 22])
    views = (subject.view,)

    def render(batch_size, number):
        images = Renderings(subject.test, index, views, batch_size, VARIATION, 3, number)
        found = list(images.stream(len(images), workers=0, device=torch.device("cpu")))
        assert torch.equal(torch.cat([numbers for numbers, _ in found]), index)
        return torch.cat([rendered["image"] for _, rendered in found])

    whole = next(iter(WholeImages(subject.test, index, views, 6).stream(
        1, workers=0, device=torch.device("cpu")
    )))[1]["image"]  # fmt: skip
    assert torch.equal(render(6, 0), render(4, 0))
    assert not torch.equal(render(6, 0), render(6, 1))
    assert not torch.equal(render(6, 0), whole)


def test_images_are_spread_over_the_split_and_neighbours_limited_by_them(subject, geometry):
    evaluator = KNNConsistency(geometry, k=10, num_images=9)
    result = evaluator.run(subject)[0]
    assert result.protocol == {"k": 4, "pool": "mean", "num_images": 9}
    assert result.num_images == 9


def test_the_baselines_are_measured_once(subject, geometry):
    seeds = []

    def fresh(seed):
        seeds.append(seed)
        return subject.fresh(seed)

    evaluator = KNNConsistency(geometry, every_steps=1)
    counted = dataclasses.replace(subject, fresh=fresh)
    assert evaluator.run(counted) == evaluator.run(counted)
    assert seeds == [0]


def test_the_subject_and_the_random_state_stay_as_they_were(subject, geometry):
    encoder = subject.pretrainer.encoder.train()
    state = torch.random.get_rng_state()
    KNNConsistency(geometry).run(subject)
    assert torch.equal(state, torch.random.get_rng_state())
    assert encoder.training


def test_too_few_images_are_refused_before_training(subject, geometry):
    two = {name: getattr(subject.test, name)[:2] for name in ("labels", "sizes", "pixels")}
    few = dataclasses.replace(subject, test=dataclasses.replace(subject.test, **two))
    with pytest.raises(DataError, match="three held-out images, but 'shapes' has 2"):
        KNNConsistency(geometry).check(few)


def test_a_missing_class_token_is_refused_before_training(subject, geometry):
    subject.pretrainer.encoder.cls_token = None
    subject.pretrainer.encoder.num_prefix = 0
    with pytest.raises(RecipeError, match="needs an encoder with a class token"):
        KNNConsistency(geometry, pool="cls").check(subject)
