"""Training a dVAE: it learns, uses its codes, repeats itself, and is kept for the next run."""

import json
import os
import random
import threading

import numpy as np
import pytest
import torch
from filelock import FileLock
from mimkit_beit import store, trained
from mimkit_beit.codebook import choose_codes, nearest
from mimkit_beit.fit import Plan, _blocks, _export, _Training, fit
from mimkit_beit.health import examine
from mimkit_beit.tokenizer import Size, Tokenizer, map_pixels, picture, unmap_pixels
from mimkit_beit.trained import train

from mimkit import DataError, TrainingError, View

CPU = torch.device("cpu")
SIZE = Size(codebook_size=32, hidden_dim=8, num_blocks=1, code_dim=8)
PLAN = Plan(
    total_steps=240,
    first_ratio=0.5,
    batch_size=8,
    lr=5e-3,
    temperature=(1.0, 0.1),
    balance_weight=1e-3,
    kl_weight=(0.0, 1e-3),
    seed=0,
)
VIEW = View("tokens", (24, 16), mean=(-0.125,) * 3, std=(1.25,) * 3, interpolation="lanczos")


class Pictures:
    """Training images that are drawn: a slope of two colours in each."""

    def __init__(self, count=64, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.ends = torch.rand(count, 2, 3, 1, 1, generator=generator)
        self.angles = torch.rand(count, 1, 1, 1, generator=generator) * 6.3
        self.fingerprint = f"{count} {seed}"

    def __len__(self):
        return len(self.ends)

    def view(self, index, view):
        height, width = view.image_size
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
        )
        angle = self.angles[index]
        mix = 0.5 + 0.5 * (x * angle.cos() + y * angle.sin()).clamp(-1, 1)  # (n, 1, H, W)
        start, end = self.ends[index].unbind(1)
        return map_pixels(start + (end - start) * mix)


def pixels(count=64):
    images = Pictures(count)
    view = images.view(torch.arange(count), VIEW)
    return (unmap_pixels(view) * 255).round().to(torch.uint8)


class Whole:
    """A training that nothing interrupts and that keeps nothing."""

    step = 0
    seconds = 0.0

    def steps(self, start, stop, module, optimizer):
        for self.step in range(start + 1, stop + 1):
            yield self.step - 1


def fit_whole(images, plan):
    return fit(images, SIZE, plan, CPU, say=lambda _: None, training=Whole())


def prepare(images, workdir, **options):
    lines = []
    settings = {"size": SIZE, "plan": PLAN, "num_images": 1000, "device": CPU, "say": lines.append}
    tokenizer, preparation = train(images, VIEW, workdir, **{**settings, **options})
    return tokenizer, preparation, lines


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder in which one tokenizer has been trained; copy it before you change it."""
    workdir = tmp_path_factory.mktemp("prepared")
    return workdir, *prepare(Pictures(), workdir)


def test_it_uses_most_codes_and_reconstructs_far_better_than_a_mean_colour(kept):
    _, _, preparation, _ = kept
    facts = preparation.facts
    assert facts["codes"] == 32
    assert facts["share of codes used"] == round(facts["codes used"] / 32, 4)
    assert facts["codes used"] + facts["codes never used"] == 32
    assert 8 < facts["perplexity of the codes"] <= 32
    view = unmap_pixels(Pictures().view(torch.arange(64), VIEW))
    spread = (view - view.mean((0, 2, 3), keepdim=True)).square().mean().item()
    assert facts["mean squared error"] < 0.5 * spread
    assert facts["images examined"] == 6
    assert facts["images trained on"] == 58


def test_the_pictures_are_those_of_the_health_card(kept):
    _, tokenizer, preparation, _ = kept
    assert list(preparation.pictures) == ["original", "through the tokenizer"]
    original, through = preparation.pictures.values()
    assert original.shape == through.shape == (6, 3, 24, 16)
    assert original.min() >= 0
    assert original.max() <= 1
    ids = tokenizer(map_pixels(original)).view(-1, 3, 2)
    torch.testing.assert_close(unmap_pixels(tokenizer.decode(ids)), through)


def test_progress_is_told(kept):
    _, _, _, lines = kept
    assert lines[0] == "dvae: training a tokenizer of 32 codes on 58 images"
    assert 2 <= len(lines) <= 11  # at most one in ten seconds
    assert lines[-1].startswith("dvae: step 240 of 240, mean absolute error 0.")


def test_the_same_is_not_trained_twice(kept):
    workdir, tokenizer, preparation, _ = kept
    again, cached, lines = prepare(Pictures(), workdir)
    assert not preparation.cached
    assert cached.cached
    assert cached.seconds == preparation.seconds > 0
    assert cached.facts == preparation.facts
    assert len(lines) == 1
    view = Pictures().view(torch.arange(64), VIEW)
    assert torch.equal(again(view), tokenizer(view))
    assert torch.equal(cached.pictures["original"], preparation.pictures["original"])
    kept_files = [path.suffix for path in workdir.iterdir() if path.suffix != ".lock"]
    assert sorted(kept_files) == [".json", ".safetensors"]


def test_training_repeats_itself_bit_by_bit_and_follows_the_seed():
    short = Plan(**{**vars(PLAN), "total_steps": 12})
    first, second = (fit_whole(pixels(), short) for _ in range(2))
    other_plan = Plan(**{**vars(short), "seed": 1})
    other = fit_whole(pixels(), other_plan)
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(first[0]["blocks.input.w"], other[0]["blocks.input.w"])


class Killed(BaseException):
    """Ends training without a word to it, as SIGKILL does."""


SHORT = Plan(**{**vars(PLAN), "total_steps": 20})


def kill_at(step):
    """Tells of progress, and dies as soon as it hears of this step."""

    def say(line):
        if line.startswith(f"dvae: step {step} of"):
            raise Killed

    return say


@pytest.fixture
def chatty(monkeypatch):
    """Every report is said, however soon it comes."""
    monkeypatch.setattr("mimkit_beit.fit._QUIET_SECONDS", 0)


@pytest.mark.usefixtures("chatty")
@pytest.mark.parametrize("step", [2, 10, 12, 20])
def test_killed_at_any_step_it_ends_with_the_same_tokenizer(step, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "_CHECKPOINT_STEPS", 4)
    prepare(Pictures(), tmp_path / "whole", plan=SHORT)
    with pytest.raises(Killed):
        prepare(Pictures(), tmp_path / "killed", plan=SHORT, say=kill_at(step))
    lines = prepare(Pictures(), tmp_path / "killed", plan=SHORT)[2]
    begun = max(saved for saved in (0, 4, 8, 10, 12, 16) if saved < step)  # 10 ends a phase
    assert (f"dvae: going on at step {begun}" in lines) == (begun > 0)
    (whole,), (killed,) = (
        (tmp_path / name).glob("dvae-*.safetensors") for name in ("whole", "killed")
    )
    assert killed.name == whole.name
    assert killed.read_bytes() == whole.read_bytes()


def test_killed_between_its_phases_it_chooses_the_same_codes(tmp_path, monkeypatch):
    prepare(Pictures(), tmp_path / "whole", plan=SHORT)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("mimkit_beit.fit.choose_codes", die)
        with pytest.raises(Killed):
            prepare(Pictures(), tmp_path / "killed", plan=SHORT)
    lines = prepare(Pictures(), tmp_path / "killed", plan=SHORT)[2]
    assert "dvae: going on at step 10" in lines
    (whole,), (killed,) = (
        (tmp_path / name).glob("dvae-*.safetensors") for name in ("whole", "killed")
    )
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("chatty")
def test_what_was_spent_before_a_kill_is_in_its_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "_CHECKPOINT_STEPS", 4)
    with pytest.raises(Killed):
        prepare(Pictures(), tmp_path, plan=SHORT, say=kill_at(6))
    (record,) = tmp_path.glob("dvae-*/step_00000004.json")
    record.write_text(record.read_text().replace('"seconds": ', '"seconds": 100'))
    preparation = prepare(Pictures(), tmp_path, plan=SHORT)[1]
    assert not preparation.cached
    assert preparation.seconds > 100


def test_what_another_process_made_while_this_one_waited_is_taken(kept, tmp_path):
    workdir, tokenizer, _, _ = kept
    (file,) = workdir.glob("dvae-*.safetensors")
    lock = FileLock(tmp_path / f".{file.stem}.lock", thread_local=False)
    lock.acquire()

    def finish():
        for made in (file, file.with_suffix(".json")):
            (tmp_path / made.name).write_bytes(made.read_bytes())
        lock.release()

    threading.Timer(0.5, finish).start()
    again, preparation, lines = prepare(Pictures(), tmp_path)
    assert preparation.cached
    assert lines == ["dvae: another process is training it; waiting for that"]
    view = Pictures().view(torch.arange(8), VIEW)
    assert torch.equal(again(view), tokenizer(view))


def test_a_half_written_tokenizer_of_a_killed_process_is_swept(tmp_path):
    short = Plan(**{**vars(PLAN), "total_steps": 2})
    prepare(Pictures(), tmp_path, plan=short)
    (file,) = tmp_path.glob("dvae-*.safetensors")
    file.rename(tmp_path / f".{file.name}.4711.tmp")
    prepare(Pictures(), tmp_path, plan=short)
    assert not list(tmp_path.glob(".*.tmp"))


def test_the_global_random_states_stay_as_they_were(tmp_path):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    prepare(Pictures(), tmp_path, plan=Plan(**{**vars(PLAN), "total_steps": 6}))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_tokenizer_is_made_again(suffix, damage, kept, tmp_path, monkeypatch):
    workdir, tokenizer, _, _ = kept
    for file in workdir.iterdir():
        content = bytearray(file.read_bytes())
        if file.suffix == suffix:
            if damage == "missing":
                continue
            if damage == "changed":
                content[-10] ^= 1
            else:
                content = content[:-10]
        (tmp_path / file.name).write_bytes(content)
    weights = tokenizer.encoder.state_dict(), tokenizer.decoder.state_dict()
    monkeypatch.setattr(trained, "fit", lambda *_, **__: weights)
    again, preparation, lines = prepare(Pictures(), tmp_path)
    assert not preparation.cached
    assert "is damaged and is made again" in lines[0] or (suffix, damage) == (
        ".safetensors",
        "missing",
    )
    assert prepare(Pictures(), tmp_path)[1].cached
    view = Pictures().view(torch.arange(8), VIEW)
    assert torch.equal(again(view), tokenizer(view))


@pytest.mark.parametrize(
    "change",
    [
        {"images": Pictures(seed=1)},
        {"size": Size(16, 8, 1, 8)},
        {"plan": Plan(**{**vars(PLAN), "lr": 2e-3})},
        {"num_images": 10},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_images_or_settings_are_trained_anew(change, kept, tmp_path, monkeypatch):
    workdir, *_ = kept
    calls = []

    def fake(pixels, size, *_, **__):
        calls.append(len(pixels))
        blank = Tokenizer(size, *(weights(network, size) for network in ("encoder", "decoder")))
        return blank.encoder.state_dict(), blank.decoder.state_dict()

    def weights(network, size):
        blocks = _blocks(network, size).to_empty(device="cpu")
        return {f"blocks.{name}": torch.zeros_like(t) for name, t in blocks.state_dict().items()}

    monkeypatch.setattr(trained, "fit", fake)
    for file in workdir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    options = {"images": Pictures(), **change}
    preparation = prepare(options.pop("images"), tmp_path, **options)[1]
    assert calls == [10 if "num_images" in change else 58]
    assert not preparation.cached


def test_a_constant_image_has_one_token_and_the_training_images_many(kept):
    _, tokenizer, _, _ = kept
    constant = map_pixels(torch.full((1, 3, 160, 160), 0.4))
    inside = tokenizer(constant).view(20, 20)[6:-6, 6:-6]  # a token sees 48 px to each side
    assert inside.unique().numel() == 1
    assert tokenizer(Pictures().view(torch.arange(64), VIEW)).unique().numel() > 16


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_the_exported_networks_compute_what_was_trained(num_blocks):
    size = Size(codebook_size=8, hidden_dim=4, num_blocks=num_blocks, code_dim=4)
    training = _Training(pixels(8), size, PLAN, CPU, say=lambda _: None, training=Whole())
    view = map_pixels(pixels(8).float() / 255)
    with torch.no_grad():
        for parameter in training.encoder.parameters():
            parameter.add_(0.01)
        scores = training.encoder(view)
        codes = scores.softmax(1)
        output = training.decoder(codes)
    exported = Tokenizer(size, _export(training.encoder, size), _export(training.decoder, size))
    torch.testing.assert_close(exported.encoder(view), scores)
    torch.testing.assert_close(picture(exported.decoder(codes)), picture(output))


def test_first_scores_are_distances_to_the_codes_of_k_means():
    training = _Training(pixels(), SIZE, PLAN, CPU, say=lambda _: None, training=Whole())
    training.choose_codebook()
    view = map_pixels(pixels(4).float() / 255)
    with torch.no_grad():
        vectors = training.bottleneck(training.encoder[:-1](view).relu())
        ids = training.encoder(view).argmax(1)
        codes = training.decoder[0](torch.eye(32)[ids].movedim(-1, 1))  # (B, D, rows, cols)
    every = training.decoder[0].w[:, :, 0, 0].T  # (K, D)
    flat = vectors.movedim(1, -1).flatten(0, -2)
    expected, distance = nearest(flat, every)
    assert (ids.flatten() == expected).float().mean() > 0.99
    torch.testing.assert_close((vectors - codes).square().sum(1).mean(), distance.mean())


@pytest.mark.slow
def test_the_weight_of_the_divergence_leaves_tokens_less_decided():
    def entropy(kl_weight):
        plan = Plan(**{**vars(PLAN), "total_steps": 120, "kl_weight": kl_weight})
        encoder, decoder = fit_whole(pixels(), plan)
        view = map_pixels(pixels(16).float() / 255)
        with torch.no_grad():
            scores = Tokenizer(SIZE, encoder, decoder).encoder(view)
        return torch.distributions.Categorical(logits=scores.movedim(1, -1)).entropy().mean()

    assert entropy((1.0, 1.0)) > entropy((0.0, 0.0)) + 0.1


def test_the_weight_of_the_divergence_follows_its_schedule():
    training = _Training(
        pixels(),
        SIZE,
        Plan(**{**vars(PLAN), "kl_weight": (0.0, 1.0)}),
        CPU,
        say=print,
        training=Whole(),
    )
    training.choose_codebook()
    view = map_pixels(pixels(8).float() / 255)

    def added(progress):
        total, error = training.discrete(view, 0, progress)
        return float((total - error).detach())

    assert added(0.0) < 0.01 < added(0.5) < added(0.999)


def test_an_error_that_is_not_finite_stops_training():
    wild = Plan(**{**vars(PLAN), "lr": 1e30})
    with pytest.raises(TrainingError, match=r"Lower lr, which is 1e\+30"):
        fit_whole(pixels(), wild)


def test_one_image_is_too_few(tmp_path):
    with pytest.raises(DataError, match="at least 2 images, but there is 1"):
        prepare(Pictures(1), tmp_path)


def test_k_means_fits_far_better_than_vectors_picked_at_random():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 3, generator=generator)
    found = nearest(vectors, choose_codes(vectors, 16, generator))[1].mean()
    for start in range(0, 320, 16):
        assert found < 0.8 * nearest(vectors, vectors[start : start + 16])[1].mean()


def test_k_means_ends_where_every_code_is_the_mean_of_what_is_nearest():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    vectors = centres.repeat(50, 1) + torch.randn(150, 2, generator=generator)
    codes = choose_codes(vectors, 3, generator)
    ids, _ = nearest(vectors, codes)
    for code in range(3):
        torch.testing.assert_close(vectors[ids == code].mean(0), codes[code])


def test_no_code_stays_unused_where_many_vectors_are_alike():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.cat([torch.zeros(900, 2), torch.rand(100, 2, generator=generator)])
    codes = choose_codes(vectors, 32, generator)
    assert nearest(vectors, codes)[0].unique().numel() > 28


def test_there_may_be_more_codes_than_vectors():
    vectors = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    codes = choose_codes(vectors, 12, torch.Generator().manual_seed(0))
    assert codes.shape == (12, 2)
    torch.testing.assert_close(nearest(vectors, codes)[1], torch.zeros(5))


def test_the_nearest_code_is_that_of_the_plain_definition():
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(9000, 3, generator=generator), torch.randn(7, 3)
    ids, distance = nearest(vectors, codes)
    every = (vectors[:, None] - codes).square().sum(-1)
    assert torch.equal(ids, every.argmin(1))
    torch.testing.assert_close(distance, every.amin(1), atol=1e-5, rtol=1e-4)


def test_health_counts_codes_and_measures_errors_in_unit_pixels(kept):
    _, tokenizer, _, _ = kept
    views = Pictures(40, seed=3).view(torch.arange(40), VIEW)
    health = examine(tokenizer, views, CPU)
    ids = tokenizer(views)
    share = torch.bincount(ids.flatten(), minlength=32) / ids.numel()
    assert health.facts["codes used"] == ids.unique().numel()
    entropy = -(share[share > 0] * share[share > 0].log()).sum()
    assert health.facts["perplexity of the codes"] == round(entropy.exp().item(), 1)
    decoded = unmap_pixels(tokenizer.decode(ids.view(-1, 3, 2)))
    error = decoded - unmap_pixels(views)
    assert health.facts["mean squared error"] == pytest.approx(error.square().mean().item(), 1e-2)
    assert health.facts["mean absolute error"] == pytest.approx(error.abs().mean().item(), 1e-2)
    assert len(health.pictures["original"]) == 8
    torch.testing.assert_close(health.pictures["through the tokenizer"], decoded[:8])


def test_without_a_decoder_the_card_says_nothing_of_errors(kept):
    _, tokenizer, _, _ = kept
    alone = Tokenizer(SIZE, tokenizer.encoder.state_dict(), None)
    health = examine(alone, Pictures(4).view(torch.arange(4), VIEW), CPU)
    assert not any("error" in name for name in health.facts)
    assert list(health.pictures) == ["original"]


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="must be written, but"):
        store.save(tmp_path / "file" / "x.safetensors", {}, {})


def test_a_write_that_is_killed_leaves_what_was_there(tmp_path):
    file = tmp_path / "x.safetensors"
    store.save(file, {"a": torch.ones(2)}, {"n": 1})

    def die(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(file, die)
    tensors, facts = store.load(file)
    assert tensors["a"].tolist() == [1, 1]
    assert facts["n"] == 1
    assert json.loads(file.with_suffix(".json").read_text())["checksum"] == store.checksum(file)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_tokenizer_gets_the_permissions_of_any_new_file(mask, tmp_path):
    before = os.umask(mask)
    try:
        store.save(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})
    finally:
        os.umask(before)
    for name in ("x.safetensors", "x.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~mask
