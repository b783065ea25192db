"""Evaluations, augmentation and pictures of images that are not 8-bit RGB."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

import mimkit
from mimkit import Geometry, Grid, View
from mimkit.data.opening import open_labelled, open_source
from mimkit.data.pixels.color import jitter
from mimkit.data.pixels.views import average, finish
from mimkit.errors import DataError, RecipeError
from mimkit.evaluate.finetune import FineTune
from mimkit.evaluate.segmentation.evaluator import Segmentation
from mimkit.evaluate.shown import visible
from mimkit.recipe.build import build
from mimkit.recipe.schema import load, resolved
from mimkit.recipe.sections import DataSection

DENSE = """evaluate = [
    {part = "segmentation", total_steps = 2, batch_size = 4, seeds = 1, width = 16, norm = "group"},
    {part = "detection", total_steps = 2, batch_size = 4, fpn_channels = 16, head_width = 16},
]"""
SEGMENT = DENSE.replace(DENSE.splitlines()[2], "")


def judged(recipe, out, *settings):
    folder = mimkit.run(recipe, settings=["train.total_steps=2", *settings], device="cpu", out=out)
    results = json.loads((folder / "results.json").read_text())["results"]
    return folder, {(each["evaluator"], each["init"]) for each in results}


@pytest.mark.slow
def test_objects_are_found_in_grey_pictures(tiny, tmp_path):
    settings = ['data.name="objects"', "data.image_size=32", "data.channels=1"]
    folder, found = judged(tiny, tmp_path / "run", *settings, DENSE.replace("\n", " "))
    assert {("segmentation", "pretrained"), ("segmentation", "random")} <= found
    assert {("detection", "pretrained"), ("detection", "scratch")} <= found
    shown = sorted(folder.glob("evaluations/*/shown/image/*.png"))
    assert len(shown) >= 2
    with Image.open(shown[0]) as image:
        pixels = np.asarray(image)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.slow
def test_stacks_of_six_pages_with_masks_are_segmented(tiny, tmp_path):
    draws = np.random.default_rng(0)
    for number in range(16):
        part = tmp_path / "set" / ("train" if number < 12 else "test")
        for kind in ("images", "masks"):
            (part / kind).mkdir(parents=True, exist_ok=True)
        mask = (draws.random((20, 24)) < 0.5).astype(np.uint8)
        pages = [
            Image.fromarray((mask * 900.0 + draws.integers(0, 200, mask.shape)).astype(np.uint16))
            for _ in range(6)
        ]
        path = part / "images" / f"{number}.tif"
        pages[0].save(path, save_all=True, append_images=pages[1:])
        Image.fromarray(mask).save(part / "masks" / f"{number}.png")
    name = json.dumps(str(tmp_path / "set"))
    settings = [f"data.name={name}", "data.channels=6", SEGMENT.replace("\n", " ")]
    settings += ["data.num_images=none", "data.num_test_images=none"]
    folder, found = judged(tiny, tmp_path / "run", *settings)
    assert {("segmentation", "pretrained"), ("segmentation", "random")} <= found
    protocol = json.loads((folder / "results.json").read_text())["results"][0]["protocol"]
    assert protocol["distort"] is False
    ledger = json.loads((folder / "ledger.json").read_text())["dataset"]
    assert ledger["range"] == json.loads((folder / "encoder.json").read_text())["range"]
    assert 0 <= ledger["range"][0] < 10
    assert 1090 < ledger["range"][1] < 1100


def test_segmentation_distorts_colours_where_there_are_colours():
    for channels, distorts in ((1, True), (3, True), (4, False)):
        evaluator = Segmentation(Geometry(Grid(4, 4, 4), channels), total_steps=2)
        assert evaluator.distort is distorts


def test_rand_augment_is_refused_by_its_key(subject):
    with pytest.raises(RecipeError, match=r"rand_augment: knows 8-bit RGB .* data.channels is 6"):
        FineTune(Geometry(Grid(4, 4, 4), 6), rand_augment="rand-m9")
    deep = replace(subject, train=replace(subject.train, scale=(0.0, 4095.0)))
    with pytest.raises(RecipeError, match=r"rand_augment: .* float32 \(data.range\)"):
        FineTune(Geometry(Grid(4, 4, 4)), rand_augment="rand-m9").check(deep)


def test_a_target_that_wants_rgb_is_refused(tiny):
    recipe = load(
        str(tiny),
        overrides=[
            "data.channels=1",
            "data.image_size=32",
            'targets.tokens={part="dvae", weights="openai"}',
            'losses.tokens={part="cross_entropy", target="tokens"}',
        ],
    )
    with pytest.raises(RecipeError, match=r"targets.tokens.*RGB images alone.*channels is 1"):
        build(recipe, mean=(0.5,), std=(0.5,), device="meta")


def test_labelled_images_have_the_range_of_those_to_pretrain_on(tmp_path):
    draws = np.random.default_rng(0)
    for part, top in (
        ("plain", 4000),
        *((f"labelled/{part}/{kind}", 1000) for part in ("train", "test") for kind in "ab"),
    ):
        (tmp_path / part).mkdir(parents=True)
        for number in range(12):
            np.save(tmp_path / part / f"{number}.npy", draws.integers(0, top, (8, 8), "u2"))
    section = DataSection(
        name=str(tmp_path / "plain"),
        labelled=str(tmp_path / "labelled"),
        channels=1,
        image_size=8,
        patch_size=4,
    )
    source = open_source(section, "train")
    train, test = open_labelled(section)
    assert train.scale == test.scale == source.scale
    assert train.pixels.max() < 0.26


class TestColours:
    @pytest.mark.parametrize("channels", [1, 2, 6])
    def test_saturation_changes_nothing_without_colours(self, channels):
        images = torch.rand(3, channels, 5, 6)
        mild, strong = (torch.tensor([[1.2, 0.7, each]] * 3) for each in (0.0, 2.0))
        assert torch.equal(jitter(images, mild), jitter(images, strong))
        assert not torch.equal(jitter(images, mild), images)

    def test_grey_is_jittered_as_torchvision_does(self):
        images = torch.rand(3, 1, 5, 6)
        found = jitter(images, torch.tensor([[1.3, 0.6, 1.0]] * 3))
        for image, mine in zip(images, found, strict=True):
            expected = tv.adjust_contrast(tv.adjust_brightness(image, 1.3), 0.6)
            torch.testing.assert_close(mine, expected)

    def test_floats_are_normalised_as_they_are_and_cut_off_at_black_and_white(self):
        view = View("image", (1, 3), mean=(0.5,), std=(0.25,))
        pixels = torch.tensor([[[[-0.1, 0.5, 1.1]]]])
        assert finish(pixels, view, None).flatten().tolist() == [-2, 0, 2]
        assert pixels.flatten().tolist() == pytest.approx([-0.1, 0.5, 1.1])  # unchanged

    def test_what_no_image_covers_becomes_zero(self):
        view = View("image", (1, 1), mean=(0.2, 0.7), std=(0.25, 0.5))
        for kind, most in ((torch.uint8, 0.02), (torch.float32, 1e-6)):
            assert finish(average(view, kind)[None], view, None).abs().max() < most

    @pytest.mark.parametrize(("channels", "shown"), [(1, (0,) * 3), (2, (0,) * 3), (6, (0, 1, 2))])
    def test_pictures_show_the_first_channels(self, channels, shown):
        image = torch.rand(channels, 4, 4)
        assert torch.equal(visible(image), (image[list(shown)] * 255).round().to(torch.uint8))


def test_a_recipe_says_channels_and_range_and_old_ones_stay_as_they_were(tiny):
    assert "channels" not in resolved(load(str(tiny)))
    text = resolved(load(str(tiny), overrides=["data.channels=1", "data.range=[0, 4095]"]))
    assert "channels = 1" in text
    with pytest.raises(RecipeError, match=r"range.*must ascend"):
        load(str(tiny), overrides=["data.range=[5, 5]"])
    with pytest.raises((RecipeError, DataError), match="channels"):
        load(str(tiny), overrides=["data.channels=0"])
