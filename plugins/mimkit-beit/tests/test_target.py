"""The token target: which ids it gives, where its weights come from, what it shows."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from dall_e import Decoder, Encoder, map_pixels
from mimkit_beit import loaded, published
from mimkit_beit.fit import Rehearsal
from mimkit_beit.target import DVAETokens
from mimkit_beit.tokenizer import PUBLISHED
from torch import nn

from mimkit import (
    Batch,
    DataError,
    Geometry,
    Grid,
    Mask,
    MimkitError,
    RecipeError,
    Width,
    patchify,
    unpatchify,
)

CPU = torch.device("cpu")
GRID = Grid(rows=3, cols=5, patch_size=4)
GEOMETRY = Geometry(GRID, embed_dim=16)
# Image 0 has three targets, image 1 has two and a padded one.
TARGET = torch.tensor([[[1, 7, 14]], [[2, 3, 0]]])
VALID = torch.tensor([[[True, True, True]], [[True, True, False]]])
SMALL = {
    "weights": "train",
    "codebook_size": 16,
    "hidden_dim": 4,
    "code_dim": 4,
    "total_steps": 8,
    "batch_size": 4,
}


class Noise:
    """Training images of noise."""

    def __init__(self, count=24, seed=0):
        self.pixels = torch.rand(count, 3, 24, 40, generator=torch.Generator().manual_seed(seed))
        self.fingerprint = f"{count} {seed}"

    def __len__(self):
        return len(self.pixels)

    def view(self, index, view):
        mean, std = (torch.tensor(values)[:, None, None] for values in (view.mean, view.std))
        return (self.pixels[index] - mean) / std


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Data and cache of this test alone, and no network."""
    monkeypatch.setenv("MIMKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "URL", (tmp_path / "server").as_uri() + "/{}.pkl")


@pytest.fixture
def encoder():
    return seeded(Encoder(n_hid=8, n_blk_per_group=1, vocab_size=32))


@pytest.fixture
def decoder():
    return seeded(Decoder(n_init=8, n_hid=8, n_blk_per_group=1, vocab_size=32))


def seeded(network):
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.requires_grad_(False)


@pytest.fixture
def path(encoder, decoder, tmp_path):
    """The encoder's file, with its decoder's beside it."""
    torch.save(encoder, tmp_path / "encoder.pkl")
    torch.save(decoder, tmp_path / "decoder.pkl")
    return tmp_path / "encoder.pkl"


@pytest.fixture
def target(path, tmp_path):
    return prepared(tmp_path, weights=str(path), codebook_size=32)


def say(line):
    pass


def prepare(target, tmp_path, images=None, say=say):
    return target.prepare(images or Noise(), tmp_path / "work", device=CPU, say=say)


def prepared(tmp_path, **options):
    target = DVAETokens(GEOMETRY, **options)
    prepare(target, tmp_path)
    return target


def batch_of(pixels, target=TARGET, valid=VALID):
    context = torch.arange(GRID.num_patches).expand(len(pixels), -1)
    mask = Mask(GRID, context, torch.zeros_like(context, dtype=torch.bool), target, valid)
    return Batch({"tokens": (pixels + 0.125) / 1.25}, mask, None, torch.arange(len(pixels)))


def every(pixels):
    """A batch whose targets are all patches of the grid."""
    target = torch.arange(GRID.num_patches).expand(len(pixels), 1, -1)
    return batch_of(pixels, target, torch.ones_like(target, dtype=torch.bool))


# --------------------------------------------------------------------------------------------- ids


def test_the_view_has_eight_pixels_a_patch_and_is_map_pixels():
    target = DVAETokens(GEOMETRY, weights="train")
    [view] = target.views
    assert view.name == "tokens"
    assert view.image_size == (24, 40)
    assert view.interpolation == "lanczos"
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in (view.mean, view.std))
    torch.testing.assert_close((pixels - mean) / std, map_pixels(pixels))


def test_ids_are_those_of_the_best_code_row_by_row(encoder, target):
    pixels = Noise().pixels[:2]
    grid = encoder(map_pixels(pixels)).argmax(dim=1)  # (2, 3, 5)
    ids = target(batch_of(pixels), None)
    assert ids.shape == (2, 1, 3)
    assert ids.dtype == torch.int64
    assert not ids.requires_grad
    assert ids[0, 0].tolist() == [grid[0, 0, 1], grid[0, 1, 2], grid[0, 2, 4]]
    assert ids[1, 0].tolist() == [grid[1, 0, 2], grid[1, 0, 3], grid[1, 0, 0]]
    assert target.width == Width("class", 32)
    assert target.ragged


def test_ids_do_not_depend_on_the_batch(target):
    pixels = Noise().pixels[:6]
    together = target(every(pixels), None)
    for image in range(6):
        assert torch.equal(target(every(pixels[image : image + 1]), None)[0], together[image])


def test_reordering_positions_reorders_ids(target):
    pixels, order = Noise().pixels[:2], torch.tensor([2, 0, 1])
    ids = target(batch_of(pixels), None)
    assert torch.equal(target(batch_of(pixels, TARGET[:, :, order]), None), ids[:, :, order])


def test_several_groups_are_looked_up_at_once(target):
    pixels = Noise().pixels[:2]
    all_ids = target(every(pixels), None)[:, 0]
    groups = torch.tensor([[[0, 1], [13, 14]], [[5, 2], [2, 5]]])
    ids = target(batch_of(pixels, groups, torch.ones_like(groups, dtype=torch.bool)), None)
    assert torch.equal(ids.flatten(1), all_ids.gather(1, groups.flatten(1)))


def test_a_constant_image_has_few_ids_and_a_rich_one_many(target):
    images = torch.cat([torch.full((1, 3, 24, 40), 0.3), Noise().pixels[:1]])
    constant, rich = target(every(images), None)
    assert constant.unique().numel() < rich.unique().numel()


def test_autocast_does_not_change_ids(target):
    batch = every(Noise().pixels[:4])
    ids = target(batch, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(target(batch, None), ids)


def test_no_checkpoint_holds_it_and_no_optimizer_sees_it(target):
    assert target.state_dict() == {}
    assert list(target.parameters()) == []
    moved = target.to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}


def test_the_step_compiles_as_one_graph(target):
    batch = batch_of(Noise().pixels[:2])
    compiled = torch.compile(target, fullgraph=True, backend="eager")
    assert torch.equal(compiled(batch, None), target(batch, None))


def test_before_it_is_prepared_it_refuses():
    target = DVAETokens(GEOMETRY, **SMALL)
    with pytest.raises(MimkitError, match="must be prepared before it gives tokens"):
        target(batch_of(Noise().pixels[:2]), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_gives_nearly_the_same_ids(target):
    target.to("cuda")
    batch = every(Noise().pixels).to(torch.device("cuda"))
    assert target.diagnose(batch)["equal_ids"] > 0.97


def test_on_the_cpu_ids_are_those_of_float32(target):
    assert target.diagnose(every(Noise().pixels)) == {"equal_ids": 1.0}


# ------------------------------------------------------------------------------- where weights come


def test_the_constructor_is_cheap_and_offline(monkeypatch):
    monkeypatch.setattr(published.urllib.request, "urlopen", lambda *_, **__: pytest.fail("online"))
    with torch.device("meta"):
        for weights in ("auto", "openai", "train", "some/encoder.pkl"):
            target = DVAETokens(GEOMETRY, weights=weights)
            assert list(target.parameters()) == list(target.buffers()) == []


def touch_openai(tmp_path, *names):
    for name in names:
        file = tmp_path / "data" / "dall-e" / f"{name}.pkl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not empty")


def test_auto_is_openai_where_its_file_is_and_else_trained(tmp_path):
    assert DVAETokens(GEOMETRY).width == Width("class", 512)
    touch_openai(tmp_path, "encoder")
    assert DVAETokens(GEOMETRY).width == Width("class", 8192)
    assert DVAETokens(GEOMETRY, codebook_size=64).width == Width("class", 64)


def settle(lines=None, **options):
    defaults = {"weights": "auto", "sha256": None, "codebook_size": None}
    return DVAETokens.settle({**defaults, **options}, (lines if lines is not None else []).append)


def test_settle_takes_openai_where_it_is(tmp_path):
    touch_openai(tmp_path, "encoder", "decoder")
    lines = []
    settled = settle(lines, lr=1e-3)
    digest = published.identify("encoder", None)
    expected = {"weights": "openai", "sha256": digest, "codebook_size": 8192, "lr": 1e-3}
    assert settled == expected
    assert "OpenAI's published tokenizer is used" in lines[-1]


def test_settle_downloads(tmp_path):
    (tmp_path / "server").mkdir()
    for network in ("encoder", "decoder"):
        (tmp_path / "server" / f"{network}.pkl").write_bytes(b"some bytes")
    assert settle()["weights"] == "openai"
    assert published.find("decoder") == tmp_path / "cache" / "dall-e" / "decoder.pkl"


def test_settle_does_without_a_decoder_and_says_so(tmp_path):
    touch_openai(tmp_path, "encoder")
    lines = []
    assert settle(lines, weights="openai")["weights"] == "openai"
    assert "without its decoder no pictures" in lines[-1]


def test_settle_trains_offline_and_says_so_loudly():
    lines = []
    settled = settle(lines)
    assert settled == {"weights": "train", "sha256": None, "codebook_size": 512}
    assert "TRAINED" in lines[-1]
    assert "cannot be downloaded" in lines[-1]
    assert len(lines[-1]) < 200


def test_settle_trains_where_the_codebook_is_not_openai_s(tmp_path):
    touch_openai(tmp_path, "encoder")
    lines = []
    assert settle(lines, codebook_size=64)["weights"] == "train"
    assert "OpenAI's has no 64 codes" in lines[-1]


def test_settle_fails_at_once_where_published_weights_are_missing():
    with pytest.raises(DataError, match=r"wget \S+ -O encoder\.pkl"):
        settle(weights="openai")
    with pytest.raises(DataError, match=r"nowhere\.pth: must be the weights of a dVAE"):
        settle(weights="nowhere.pth")


def test_settled_options_settle_to_themselves(path, tmp_path):
    touch_openai(tmp_path, "encoder", "decoder")
    for options in ({"weights": "auto"}, {"weights": "train"}, {"weights": str(path)}):
        settled = settle(**options)
        assert settle(**settled) == settled
        DVAETokens(GEOMETRY, **settled)


def test_the_pinned_file_is_accepted_and_another_refused(path, tmp_path):
    options = {"weights": str(path), "codebook_size": 32}
    right = published.identify("encoder", path)
    prepared(tmp_path, **options, sha256=right)
    with pytest.raises(DataError, match=f"must have {'0' * 64}, but has {right}"):
        prepared(tmp_path, **options, sha256="0" * 64)


def test_another_codebook_than_the_recipe_says_is_refused(path, tmp_path):
    with pytest.raises(DataError, match=r"must have 8192 codes, but has 32\. Set codebook_size"):
        prepared(tmp_path, weights=str(path))


def test_a_small_network_under_the_name_of_openai_s_is_refused(path, tmp_path):
    file = tmp_path / "data" / "dall-e" / "encoder.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"must be OpenAI's encoder, Size\(codebook_size=8192"):
        prepared(tmp_path, weights="openai")


def test_a_text_in_place_of_openai_s_file_never_gives_random_weights(tmp_path):
    touch_openai(tmp_path, "encoder")
    target = DVAETokens(GEOMETRY)
    with pytest.raises(DataError, match="it is a text that begins with 'not empty'"):
        prepare(target, tmp_path)
    with pytest.raises(MimkitError, match="must be prepared"):
        target(batch_of(Noise().pixels[:2]), None)


def test_networks_that_do_not_belong_together_are_refused(path, tmp_path):
    torch.save(Decoder(n_init=8, n_hid=4, n_blk_per_group=1, vocab_size=32), path.parent / "x")
    (path.parent / "x").replace(path.parent / "decoder.pkl")
    with pytest.raises(DataError, match="encoder and decoder must belong together"):
        prepared(tmp_path, weights=str(path), codebook_size=32)


# --------------------------------------------------------------------------------------- prepare


def test_the_health_of_published_weights_is_looked_at_once(path, tmp_path):
    target = DVAETokens(GEOMETRY, weights=str(path), codebook_size=32)
    first, again = (prepare(target, tmp_path) for _ in range(2))
    assert (first.cached, again.cached) == (False, True)
    assert first.seconds == again.seconds > 0
    assert first.facts == again.facts
    assert first.facts["SHA-256 of the encoder"] == published.identify("encoder", path)
    assert first.facts["codes"] == 32
    assert first.facts["images examined"] == 24
    assert list(first.pictures) == list(again.pictures) == ["original", "through the tokenizer"]
    other = prepare(target, tmp_path, Noise(seed=1))
    assert not other.cached


def test_without_a_decoder_there_are_facts_but_no_pictures(path, tmp_path):
    (path.parent / "decoder.pkl").unlink()
    target = DVAETokens(GEOMETRY, weights=str(path), codebook_size=32)
    preparation = prepare(target, tmp_path)
    assert preparation.facts["codes used"] > 1
    assert "through the tokenizer" not in preparation.pictures
    batch = every(Noise().pixels[:2])
    assert target.render(torch.zeros(2, 1, 15, 32), batch) == ()


def test_a_trained_tokenizer_is_the_same_for_every_run(tmp_path):
    first, again = prepared(tmp_path, **SMALL), DVAETokens(GEOMETRY, **SMALL)
    assert prepare(again, tmp_path).cached
    batch = every(Noise().pixels)
    ids = first(batch, None)
    assert torch.equal(ids, again(batch, None))
    assert ids.max() < 16
    assert first.state_dict() == {}


def test_a_trained_tokenizer_can_be_named_by_its_path(tmp_path):
    first = prepared(tmp_path, **SMALL)
    [file] = (tmp_path / "work").glob("dvae-*.safetensors")
    again = prepared(tmp_path, weights=str(file), codebook_size=16)
    batch = every(Noise().pixels)
    assert torch.equal(first(batch, None), again(batch, None))
    prediction = torch.zeros(len(batch.index), 1, 15, 16)
    pictures = (target.render(prediction, batch)[1].image for target in (first, again))
    torch.testing.assert_close(*pictures)


@pytest.mark.parametrize("weights", ["path", "train"])
def test_prepare_leaves_the_global_random_states_alone(weights, path, tmp_path):
    options = SMALL if weights == "train" else {"weights": str(path), "codebook_size": 32}
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    prepared(tmp_path, **options)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


# -------------------------------------------------------------------------------------- pictures


def scores(ids):
    return torch.nn.functional.one_hot(ids, 32).float()


def test_right_predictions_decode_to_the_true_picture(target, decoder):
    batch = batch_of(Noise().pixels[:2])
    predicted, true = target.render(scores(target(batch, None)), batch)
    assert torch.equal(predicted.image, true.image)
    assert predicted.view == true.view == target.views[0]
    assert predicted.title == "predicted tokens, decoded"
    assert true.title == "true tokens, decoded"
    ids = target(every(Noise().pixels[:2]), None).view(2, 3, 5)
    expected = decoder(scores(ids).movedim(-1, 1))[:, :3].sigmoid()
    torch.testing.assert_close(true.image, expected)


def test_predictions_are_put_at_valid_targets_only(target, decoder):
    pixels = Noise().pixels[:2]
    batch = batch_of(pixels)
    ids = target(batch, None)
    wrong = (ids + 5) % 32
    predicted, _ = target.render(scores(wrong), batch)
    grid = target(every(pixels), None)[:, 0]  # (2, 15)
    grid[0, [1, 7, 14]] = wrong[0, 0]
    grid[1, [2, 3]] = wrong[1, 0, :2]  # the third is padding: position 0 keeps its own
    expected = decoder(scores(grid.view(2, 3, 5)).movedim(-1, 1))[:, :3].sigmoid()
    torch.testing.assert_close(predicted.image, expected)


def test_the_pictures_have_the_size_of_their_view(target):
    batch = every(Noise().pixels[:2])
    for picture in target.render(torch.zeros(2, 1, 15, 32), batch):
        assert picture.image.shape == (2, 3, *picture.view.image_size)
        assert torch.equal(unpatchify(patchify(picture.image, 8), Grid(3, 5, 8)), picture.image)


# --------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "opena"}, "but is 'opena'. Did you mean 'openai'?"),
        ({"weights": "encoder.txt"}, "a path that ends in .pkl, .pth, .safetensors"),
        ({"weights": "openai", "codebook_size": 512}, "must be 8192 with weights = 'openai'"),
        ({"weights": "train", "sha256": "0" * 64}, "sha256: must be left out unless"),
        ({"sha256": "0" * 64}, "sha256: must be left out unless"),
        ({"weights": "openai", "sha256": "abc"}, "must be 64 hexadecimal digits"),
        ({"weights": "openai", "sha256": "A" * 64}, "must be 64 hexadecimal digits"),
        ({"hidden_dim": 6}, "hidden_dim: must be a multiple of 4, but is 6"),
    ],
)
def test_options_that_do_not_hold_are_refused(options, words):
    with pytest.raises(RecipeError) as caught:
        DVAETokens(GEOMETRY, **options)
    assert words in str(caught.value)


def test_a_rehearsal_trains_nothing_and_keeps_nothing(tmp_path):
    state = torch.get_rng_state()
    target = DVAETokens(GEOMETRY, **SMALL)
    done = target.rehearse(Noise(), tmp_path / "work", device=CPU)
    assert not done.cached
    assert done.seconds > 0
    assert done.flops > 0
    assert not (tmp_path / "work").exists()
    assert torch.equal(torch.get_rng_state(), state)
    assert target(batch_of(Noise(2).pixels), None).shape == TARGET.shape


def test_a_rehearsal_finds_what_is_trained(tmp_path):
    made = prepare(DVAETokens(GEOMETRY, **SMALL), tmp_path)
    target = DVAETokens(GEOMETRY, **SMALL)
    found = target.rehearse(Noise(), tmp_path / "work", device=CPU)
    assert found.cached
    assert (found.key, found.seconds) == (made.key, made.seconds)


def test_other_settings_are_another_tokenizer(tmp_path):
    keys = {
        DVAETokens(GEOMETRY, **{**SMALL, "total_steps": steps})
        .rehearse(Noise(seed=seed), tmp_path, device=CPU)
        .key
        for steps, seed in ((8, 0), (8, 0), (9, 0), (8, 1))
    }
    assert len(keys) == 3


def test_a_rehearsal_downloads_nothing(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    # OpenAI's own size would take seconds.
    monkeypatch.setattr(loaded, "PUBLISHED", replace(PUBLISHED, hidden_dim=8, num_blocks=1))
    target = DVAETokens(GEOMETRY, weights="openai")
    done = target.rehearse(Noise(), tmp_path / "work", device=CPU)
    assert not done.cached
    assert not (tmp_path / "work").exists()


def test_a_file_is_rehearsed_as_it_is(path, tmp_path):
    target = DVAETokens(GEOMETRY, weights=str(path), codebook_size=32)
    first = target.rehearse(Noise(), tmp_path / "work", device=CPU)
    assert not first.cached
    made = target.prepare(Noise(), tmp_path / "work", device=CPU, say=lambda _: None)
    again = target.rehearse(Noise(), tmp_path / "work", device=CPU)
    assert again.cached
    assert made.key == first.key == again.key


def test_an_estimate_is_of_all_steps_but_leaves_out_the_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mimkit_beit.fit.time.perf_counter", lambda: now[0])
    rehearsal = Rehearsal()
    for start, stop, seconds in ((0, 100, 1.0), (100, 400, 2.0)):
        for step in rehearsal.steps(start, stop, nn.Linear(1, 1), None):
            now[0] += 50.0 if step == start else seconds
    assert rehearsal.seconds == 100 * 1.0 + 300 * 2.0
    assert now[0] < 110  # few of them were done
