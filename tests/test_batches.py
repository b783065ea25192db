"""Batches are a pure function of (recipe, seed, step), whoever builds them and with how many."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from mimkit.data.batches import Batches, default_workers, positions, stream
from mimkit.data.pixels.augment import Augment
from mimkit.data.pixels.raster import Raster
from mimkit.data.source import Source
from mimkit.errors import DataError, RecipeError
from mimkit.parts.masker import Masker
from mimkit.parts.records import Grid, Mask, View
from mimkit.recipe.sections import DataSection

VIEWS = (View("image", (8, 8)), View("small", (4, 4), interpolation="lanczos"))
CPU = torch.device("cpu")


class HalfMasker(Masker):
    def __init__(self, grid):
        self.grid = grid

    def sample(self, batch_size, generator):
        order = torch.rand(batch_size, self.grid.num_patches, generator=generator).argsort(1)
        return Mask.drop(order < self.grid.num_patches // 2, self.grid)


class FileReader:
    """Reads images of many sizes; one of them may be broken."""

    def __init__(self, sizes, broken=None):
        self.sizes = sizes
        self.broken = broken

    def __call__(self, index, shrink=1):
        if index == self.broken:
            raise DataError(f"image {index} is gone")
        height, width = self.sizes[index].tolist()
        values = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Raster((Image.fromarray(values),))


def pixel_source(n=10):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return make_source(torch.full((n, 2), 8), pixels=pixels)


def file_source(n=10, broken=None):
    sizes = torch.tensor([[9 + k % 3, 8 + k % 5] for k in range(n)])
    return make_source(sizes, reader=FileReader(sizes, broken))


def make_source(sizes, **content):
    return Source(
        name="made",
        split="train",
        origin="here",
        classes=("even", "odd"),
        labels=torch.arange(len(sizes)) % 2,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        fingerprint="",
        sizes=sizes.to(torch.int32),
        **content,
    )


def make_batches(source, *, batch_size=4, augment=None, grid=None, **place):
    return Batches(
        source,
        views=VIEWS,
        augment=augment or Augment(color_jitter=0.4),
        masker=HalfMasker(grid or Grid(4, 4, 2)),
        batch_size=batch_size,
        seed=3,
        **place,
    )


def assert_same(one, two):
    assert one.views.keys() == two.views.keys()
    for name in one.views:
        assert torch.equal(one.views[name], two.views[name])
    for name in ("context", "hidden", "target", "valid"):
        assert torch.equal(getattr(one.mask, name), getattr(two.mask, name))
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.index, two.index)


class TestPositions:
    @pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2)])
    def test_every_pass_shows_every_image_once_and_none_is_dropped(self, num_images, batch_size):
        steps = [positions(num_images, batch_size, 0, step) for step in range(4 * num_images)]
        index = np.concatenate([each[0] for each in steps])
        epoch = np.concatenate([each[1] for each in steps])
        assert (epoch == np.arange(len(epoch)) // num_images).all()
        for start in range(0, len(index) - num_images + 1, num_images):
            assert sorted(index[start : start + num_images]) == list(range(num_images))

    def test_passes_and_seeds_have_orders_of_their_own(self):
        orders = {tuple(positions(50, 50, seed, step)[0]) for seed in (0, 1) for step in (0, 1)}
        assert len(orders) == 4

    def test_a_step_does_not_depend_on_the_steps_before(self):
        late = positions(1000, 7, 5, 300)
        for step in range(300):
            positions(1000, 7, 5, step)
        again = positions(1000, 7, 5, 300)
        assert np.array_equal(late[0], again[0])
        assert np.array_equal(late[1], again[1])

    def test_the_order_is_the_same_on_every_machine(self):
        assert positions(10, 10, 0, 0)[0].tolist() == [7, 0, 5, 3, 2, 1, 4, 8, 9, 6]

    def test_the_image_that_comes_first_is_any(self):
        first = np.array([positions(5, 1, seed, 0)[0][0] for seed in range(500)])
        assert np.bincount(first, minlength=5).min() > 70


@pytest.mark.parametrize("source", [pixel_source(), file_source()], ids=["pixels", "files"])
class TestBatches:
    def test_a_step_holds_what_the_views_the_masker_and_the_labels_say(self, source):
        batch = make_batches(source)[2]
        assert batch.image.shape == (4, 3, 8, 8)
        assert batch.views["small"].shape == (4, 3, 4, 4)
        assert batch.mask.target.shape == (4, 1, 8)
        assert torch.equal(batch.labels, batch.index % 2)
        assert batch.index.tolist() == positions(10, 4, 3, 2)[0].tolist()

    def test_it_is_the_same_each_time_and_in_any_order(self, source):
        forwards, backwards = make_batches(source), make_batches(source)
        later = [backwards[step] for step in (6, 5, 4)]
        for step in (4, 5, 6):
            assert_same(forwards[step], later[6 - step])

    def test_the_shares_of_two_processes_make_up_the_batch_of_one(self, source):
        whole = make_batches(source)[3]
        shares = [make_batches(source, rank=rank, world_size=2)[3] for rank in (0, 1)]
        for name in whole.views:
            joined = torch.cat([share.views[name] for share in shares])
            assert torch.equal(joined, whole.views[name])
        for name in ("context", "hidden", "target", "valid"):
            joined = torch.cat([getattr(share.mask, name) for share in shares])
            assert torch.equal(joined, getattr(whole.mask, name))
        assert torch.equal(torch.cat([share.index for share in shares]), whole.index)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_loader_processes_change_nothing(self, source, workers):
        batches = make_batches(source)
        streamed = list(stream(batches, 2, 7, workers=workers, device=CPU))
        assert len(streamed) == 5
        for step, batch in enumerate(streamed, start=2):
            assert_same(batch, batches[step])

    def test_the_global_random_state_is_left_alone(self, source):
        state = torch.get_rng_state()
        list(stream(make_batches(source), 0, 2, workers=0, device=CPU))
        assert torch.equal(torch.get_rng_state(), state)

    def test_grids_need_not_be_square(self, source):
        batch = make_batches(source, grid=Grid(3, 5, 2))[0]
        assert batch.mask.context.shape == (4, 8)


def test_augmentation_differs_from_pass_to_pass():
    batches = make_batches(pixel_source(4), augment=Augment(crop="pad", padding=3))
    first = [batch.image[batch.index == 0] for batch in (batches[epoch] for epoch in range(5))]
    shown = {image.numpy().tobytes() for image in first}
    assert len(shown) > 2


def test_masks_differ_from_step_to_step_and_from_seed_to_seed():
    batches = make_batches(pixel_source())
    other = make_batches(pixel_source())
    other.seed = 4
    masks = [batches[0].mask.target, batches[1].mask.target, other[0].mask.target]
    assert not any(torch.equal(masks[a], masks[b]) for a, b in [(0, 1), (0, 2), (1, 2)])


def test_images_without_labels_give_batches_without_labels():
    source = pixel_source()
    object.__setattr__(source, "labels", None)
    assert make_batches(source)[0].labels is None


def test_a_batch_that_processes_cannot_share_equally_is_refused():
    with pytest.raises(RecipeError, match="batch_size: must be a multiple of the 3 processes"):
        make_batches(pixel_source(), world_size=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_ends_the_stream_with_its_own_words(workers):
    batches = make_batches(file_source(broken=6))
    with pytest.raises(DataError) as caught:
        list(stream(batches, 0, 5, workers=workers, device=CPU))
    assert str(caught.value) == "image 6 is gone"


def test_a_stream_that_is_left_early_leaves_no_process_behind():
    batches = stream(make_batches(file_source()), 0, 1000, workers=2, device=CPU)
    next(batches)
    batches.close()
    for process in multiprocessing.active_children():
        process.join(10)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loader_processes_leave_signals_to_the_training_process(number):
    batches = stream(make_batches(file_source()), 0, 30, workers=2, device=CPU)
    next(batches)
    next(batches)  # the second process has started too: they take turns
    for process in multiprocessing.active_children():
        os.kill(process.pid, number)
    assert len(list(batches)) == 28


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
@pytest.mark.parametrize("resident", [True, False], ids=["pixels", "files"])
def test_on_a_gpu_nothing_waits_and_nothing_changes(crop, resident):
    augment = Augment(crop=crop, color_jitter=0.4)
    source = pixel_source() if resident else file_source()
    here = make_batches(source, augment=augment)
    device = torch.device("cuda")
    there = stream(make_batches(source.to(device), augment=augment), 0, 5, workers=2, device=device)
    batches = [next(there)]  # the first sends the constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches += there
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in enumerate(batches):
        for name, view in batch.views.items():
            assert view.device.type == "cuda"
            # One grey level of 255, through a standard deviation of a half.
            assert torch.allclose(view.cpu(), here[step].views[name], atol=2.1 / 255)
        assert torch.equal(batch.mask.target.cpu(), here[step].mask.target)
        assert torch.equal(batch.index.cpu(), here[step].index)


class TestDefaultWorkers:
    section = DataSection(name="shapes", image_size=8, patch_size=2)

    def default(self, monkeypatch, cores, source=None, **environment):
        for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "MIMKIT_CORES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr("os.sched_getaffinity", lambda _: range(cores), raising=False)
        return default_workers(self.section, source or file_source())

    def test_pixels_at_hand_need_none_and_files_get_all_cores_but_one(self, monkeypatch):
        assert self.default(monkeypatch, 6, pixel_source()) == 0
        assert self.default(monkeypatch, 6) == 5

    def test_one_core_still_gets_a_loader(self, monkeypatch):
        assert self.default(monkeypatch, 1) == 1
        assert self.default(monkeypatch, 4, LOCAL_WORLD_SIZE=8) == 1

    @pytest.mark.parametrize(
        ("cores", "ranks", "expected"), [(96, 8, 11), (16, 2, 7), (256, 2, 16)]
    )
    def test_the_processes_of_a_run_share_the_machine(self, monkeypatch, cores, ranks, expected):
        found = self.default(monkeypatch, cores, LOCAL_WORLD_SIZE=ranks, WORLD_SIZE=4 * ranks)
        assert found == expected
        assert ranks * (found + 1) <= cores
        assert self.default(monkeypatch, cores, WORLD_SIZE=ranks) == expected

    def test_runs_of_a_comparison_share_it_too(self, monkeypatch):
        assert self.default(monkeypatch, 96, MIMKIT_CORES=12) == 11
        assert self.default(monkeypatch, 8, MIMKIT_CORES=12) == 7
        assert self.default(monkeypatch, 96, MIMKIT_CORES=12, LOCAL_WORLD_SIZE=4) == 2

    def test_the_recipe_decides(self):
        section = self.section.model_copy(update={"workers": 3})
        assert default_workers(section, pixel_source()) == 3
