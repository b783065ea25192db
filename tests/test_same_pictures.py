"""The same pictures for every method: images, masks, files and what is said of them."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import mimkit
from mimkit import DataError, Grid, RecipeError
from mimkit.builtin.encoders import ViT
from mimkit.builtin.maskers import RandomMasker
from mimkit.builtin.targets import Pixels
from mimkit.parts.masker import Masker
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load
from mimkit.report import same_pictures as module
from mimkit.report.region import fit_region, hidden_region
from mimkit.report.same_pictures import draw
from mimkit.study.gather import gather
from mimkit.study.records import Budget, Method, Plan, Trial

RECIPE = """\
name = "{name}"
seed = {seed}
[data]
name = "shapes"
image_size = {image_size}
patch_size = {patch_size}
num_images = 64
num_test_images = 40
{parts}[train]
total_steps = 2
batch_size = 4
optimizer = "adamw"
lr = 1e-3
[[evaluate]]
part = "heldout"
"""
REPLACES = """\
[masker]
part = "random"
mask_ratio = 0.5
mode = "replace"
[encoder]
part = "vit"
embed_dim = 16
depth = 2
num_heads = 2
mask_token = true
[targets.pixels]
part = "pixels"
[head]
part = "linear"
[losses.pixels]
part = "mse"
"""
DROPS = """\
[masker]
part = "random"
mask_ratio = 0.25
[encoder]
part = "patch_resnet"
width = 8
depths = [1, 1, 1, 1]
[targets.patches]
part = "latent"
[head]
part = "pointer"
depth = 1
num_heads = 8
mlp_dim = 32
[losses.patches]
part = "pointer"
"""
CELL, GREY = 192, 158
LEFT = 24


def pretrain(runs, name, seed=0, *, image_size=16, patch_size=4, parts=REPLACES):
    file = runs / f"{name}-{seed}.toml"
    settings = {"image_size": image_size, "patch_size": patch_size, "parts": parts}
    file.write_text(RECIPE.format(name=name, seed=seed, **settings))
    run(load(str(file)), out=runs, device="cpu", console=Console(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Finished runs: coarse and odd with seeds 0 and 1, fine with seed 1 alone."""
    folder = tmp_path_factory.mktemp("comparison")
    runs = folder / "runs"
    runs.mkdir()
    for seed in (0, 1):
        pretrain(runs, "coarse", seed)
        pretrain(runs, "odd", seed, image_size=18, patch_size=3)
    pretrain(runs, "fine", 1, patch_size=2)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "comparison")


def make_plan(folder, *labels, seeds=(0, 1)):
    def method(label):
        found = next((folder / "runs" / label).glob("*/ledger.json"))
        fingerprint = json.loads(found.read_text())["dataset"]["fingerprint"]
        trial = Trial(0.1, 1e9, 1, 0.0, {}, {}, 0.1, 0.1, fingerprint, 64, "CPU")
        return Method(label, label, label, 4, 2, (), trial, 1.0)

    methods = tuple(method(label) for label in labels)
    return Plan("", "shapes", Budget("steps", 2), seeds, methods, mimkit.__version__)


def drawn(folder, *labels, **options):
    """Draws, and returns the manifest by label and what was said."""
    said = io.StringIO()
    study = gather(make_plan(folder, *labels, **options), folder)
    draw(study, console=Console(file=said, width=1000))
    manifest = json.loads((folder / "pictures" / "manifest.json").read_text())
    return {sheet["file"].split(".")[0]: sheet for sheet in manifest}, said.getvalue()


def column(folder, sheet, number):
    """The cells of one column, all 8 images below each other: (8, 192, 192, 3)."""
    with Image.open(folder / "pictures" / sheet["file"]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    left = LEFT + number * (CELL + 12)
    body = pixels[:, left : left + CELL]
    legend = 44 if "Green frames" in sheet["description"] else 0
    top = len(body) - legend - 24 - 8 * CELL - 7 * 12
    return np.stack([body[top + row * (CELL + 12) :][:CELL] for row in range(8)])


def is_grey(cells):
    return (cells == GREY).all(axis=-1)


# ---------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("grid", [Grid(2, 2, 8), Grid(4, 4, 8), Grid(3, 5, 8), Grid(7, 7, 32)])
def test_a_quarter_to_two_fifths_of_the_coarsest_grid_is_hidden(grid):
    region = hidden_region(grid, 0)
    counts = region.sum(dim=1)
    assert region.shape == (8, grid.num_patches)
    assert set(counts.tolist()) == {int(counts[0])}
    assert 0.25 <= int(counts[0]) / grid.num_patches <= 0.4


def test_the_region_follows_from_the_seed_and_differs_between_images():
    region = hidden_region(Grid(4, 4, 8), 3)
    assert torch.equal(region, hidden_region(Grid(4, 4, 8), 3))
    assert not torch.equal(region, hidden_region(Grid(4, 4, 8), 4))
    assert len(region.unique(dim=0)) > 4


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 2), (3, 2)])
def test_a_square_of_the_coarsest_grid_is_whole_patches_of_a_finer_one(rows, cols):
    coarse, fine = Grid(4, 5, 6), Grid(4 * rows, 5 * cols, 1)
    region = hidden_region(coarse, 0)
    squares = region.view(8, 4, 5).numpy()
    expected = np.kron(squares, np.ones((1, rows, cols), dtype=bool)).reshape(8, -1)
    assert torch.equal(fit_region(region, coarse, fine), torch.from_numpy(expected))


def test_where_patches_do_not_fit_the_most_covered_are_hidden_equally_many_everywhere():
    coarse, fine = Grid(4, 4, 6), Grid(6, 6, 4)
    region = hidden_region(coarse, 0)
    fitted = fit_region(region, coarse, fine)
    assert fitted.sum(dim=1).tolist() == [11] * 8  # 5 of 16 are 11.25 of 36
    pixels = region.view(8, 4, 4).repeat_interleave(6, 1).repeat_interleave(6, 2)
    covered = pixels.view(8, 6, 4, 6, 4).sum(dim=(2, 4)).flatten(1)
    for chosen, count in zip(fitted, covered, strict=True):
        assert count[chosen].min() >= count[~chosen].max()


# ----------------------------------------------------------------------------------------- sheets


def test_all_methods_see_the_same_images_with_the_same_region_hidden(folder):
    sheets, said = drawn(folder, "fine", "coarse")
    assert list(sheets) == ["fine", "coarse"]
    assert [sheet["title"] for sheet in sheets.values()] == ["fine, seed 1", "coarse, seed 1"]
    assert "here 20 of 64 patches" in sheets["fine"]["description"]
    assert "here 5 of 16 patches" in sheets["coarse"]["description"]
    assert "no whole patches" not in sheets["fine"]["description"]
    assert "no pictures" not in said
    fine, coarse = ([column(folder, sheets[name], n) for n in range(4)] for name in sheets)
    assert (fine[0] == coarse[0]).all()
    assert len({image.tobytes() for image in fine[0]}) == 8
    assert (is_grey(fine[1]) == is_grey(coarse[1])).all()
    assert is_grey(fine[1]).mean(axis=(1, 2)) == pytest.approx([5 / 16] * 8)
    assert (fine[2] != coarse[2]).any()  # each predicts its own pixels,
    hidden = is_grey(fine[1])
    assert (fine[2][~hidden] == fine[0][~hidden]).all()  # at the hidden patches alone
    assert (fine[2][hidden] != fine[0][hidden]).any()
    assert (fine[3] != fine[0]).any()  # attention


def test_a_grid_that_is_no_multiple_hides_nearly_the_same_and_says_so(folder):
    sheets, _ = drawn(folder, "coarse", "odd")
    assert "here 11 of 36 patches" in sheets["odd"]["description"]
    assert "no whole patches of this grid" in sheets["odd"]["description"]
    coarse, odd = (is_grey(column(folder, sheets[name], 1)) for name in ("coarse", "odd"))
    assert (coarse & odd).sum() / coarse.sum() > 0.75


def test_images_are_evenly_spaced_over_the_held_out_split(folder, monkeypatch):
    seen = []
    view = module.Source.view
    monkeypatch.setattr(
        module.Source,
        "view",
        lambda self, index, what: seen.append(index) or view(self, index, what),
    )
    drawn(folder, "coarse")
    assert [index.tolist() for index in seen] == [[0, 5, 10, 15, 20, 25, 30, 35]]


def test_a_method_that_drops_patches_and_has_no_attention_is_shown_the_same(folder):
    pretrain(folder / "runs", "drops", 1, image_size=32, patch_size=8, parts=DROPS)
    pretrain(folder / "runs", "large", 1, image_size=32)
    sheets, said = drawn(folder, "drops", "large")
    assert "no pictures" not in said
    seen = [is_grey(column(folder, sheets[name], 1)) for name in sheets]
    assert (seen[0] == seen[1]).all()
    assert "Green frames" in sheets["drops"]["description"]
    assert "Attention" not in sheets["drops"]["description"]
    assert "Green frames" not in sheets["large"]["description"]


def test_fewer_held_out_images_than_rows_are_each_shown_once(folder):
    ledger = folder / "runs" / "coarse" / "0" / "ledger.json"
    content = json.loads(ledger.read_text())
    content["dataset"]["test_images"] = 3
    ledger.write_text(json.dumps(content))
    sheets, _ = drawn(folder, "coarse")
    assert "The same 3 held-out images" in sheets["coarse"]["description"]
    with Image.open(folder / "pictures" / "coarse.png") as picture:
        assert picture.height < 4 * CELL


# ------------------------------------------------------------------------------------------- runs


def test_without_a_common_seed_each_method_shows_its_first_finished_run(folder):
    shutil.rmtree(folder / "runs" / "coarse" / "1")
    sheets, _ = drawn(folder, "coarse", "fine")
    assert [sheet["title"] for sheet in sheets.values()] == ["coarse, seed 0", "fine, seed 1"]


def test_what_is_not_finished_is_left_out(folder):
    for ledger in (folder / "runs" / "coarse").glob("*/ledger.json"):
        content = json.loads(ledger.read_text())
        del content["seconds"]["evaluate"]
        ledger.write_text(json.dumps(content))
    sheets, _ = drawn(folder, "coarse", "fine")
    assert list(sheets) == ["fine"]


def test_without_any_run_the_manifest_is_empty(folder):
    plan = make_plan(folder, "coarse", "fine")
    shutil.rmtree(folder / "runs")
    draw(gather(plan, folder), console=Console(quiet=True))
    assert json.loads((folder / "pictures" / "manifest.json").read_text()) == []


def test_nothing_is_drawn_anew_unless_something_changed(folder):
    drawn(folder, "coarse", "fine")
    files = sorted((folder / "pictures").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    _, said = drawn(folder, "coarse", "fine")
    assert said == ""
    assert [file.stat().st_mtime_ns for file in files] == before
    _, said = drawn(folder, "coarse", "fine", seeds=(1, 0))
    assert "pictures" in said
    files[0].unlink()
    sheets, said = drawn(folder, "coarse", "fine", seeds=(1, 0))
    assert "pictures" in said
    assert (folder / "pictures" / sheets["coarse"]["file"]).is_file()


def test_a_run_made_anew_is_drawn_anew(folder):
    before, _ = drawn(folder, "coarse")
    shutil.rmtree(folder / "runs" / "coarse" / "0")
    after, _ = drawn(folder, "coarse")
    assert before["coarse"]["digest"] != after["coarse"]["digest"]


# --------------------------------------------------------------------------------- what is missing


def test_a_method_that_cannot_take_the_mask_has_its_own_and_says_so(folder, monkeypatch):
    def refuse(self, masked):
        if self.grid.num_patches == 64:
            raise RecipeError("masker 'random': must be asked nicely.")
        return Masker.mask_of(self, masked)

    monkeypatch.setattr(RandomMasker, "mask_of", refuse)
    sheets, _ = drawn(folder, "coarse", "fine")
    assert "masks of this one are its own" in sheets["fine"]["description"]
    assert "must be asked nicely" in sheets["fine"]["description"]
    assert "same region" in sheets["coarse"]["description"]
    assert is_grey(column(folder, sheets["fine"], 1)).mean() == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["checkpoint", "cache"])
def test_without_checkpoint_or_cache_the_rest_is_shown_until_they_are_back(
    folder, monkeypatch, missing
):
    whole, _ = drawn(folder, "coarse")
    if missing == "checkpoint":
        (folder / "runs" / "coarse" / "0" / "checkpoints").rename(folder / "away")
        reason = "there must be a checkpoint, but there is none"
    else:
        prepare = Pixels.prepare
        monkeypatch.setattr(
            Pixels,
            "prepare",
            lambda self, images, workdir, device, say: images.view(
                torch.arange(len(images)).repeat(2), module.View("image", (16, 16))
            ),
        )
        (folder / "pictures" / "manifest.json").unlink()
        reason = "what was prepared before training is no longer in"
    sheets, said = drawn(folder, "coarse")
    assert reason in sheets["coarse"]["description"]
    assert "Attention" in sheets["coarse"]["description"]
    assert "no pictures" not in said
    assert sheets["coarse"]["digest"] == ""
    if missing == "checkpoint":
        (folder / "away").rename(folder / "runs" / "coarse" / "0" / "checkpoints")
    else:
        monkeypatch.setattr(Pixels, "prepare", prepare)
    assert drawn(folder, "coarse")[0] == whole


def test_a_target_may_look_at_a_few_images(folder, monkeypatch):
    seen = []

    def prepare(self, images, workdir, *, device, say):
        seen.append(images.view(torch.arange(64), module.View("image", (16, 16))))
        assert (len(images), len(images.fingerprint)) == (64, 64)

    monkeypatch.setattr(Pixels, "prepare", prepare)
    sheets, _ = drawn(folder, "coarse")
    assert seen[0].shape == (64, 3, 16, 16)
    assert "not shown" not in sheets["coarse"]["description"]


@pytest.mark.parametrize("fault", ["attention", "recipe"])
def test_a_method_that_cannot_be_drawn_is_named_and_the_others_are_drawn(
    folder, monkeypatch, fault
):
    if fault == "attention":
        attention = ViT.attention
        monkeypatch.setattr(ViT, "attention", lambda self, image: attention(self, image)[:, :40])
        reason = "it must be (B=8, N=64)"
    else:
        (folder / "runs" / "fine" / "1" / "recipe.toml").write_text('[masker]\npart = "random"')
        reason = "[masker] mask_ratio: is missing"
    sheets, said = drawn(folder, "coarse", "fine")
    assert list(sheets) == ["coarse"]
    assert "fine, seed 1: no pictures." in said
    assert reason in said


# ------------------------------------------------------------------------------------------ sizes


def test_large_sheets_are_stored_more_densely_and_old_files_removed(folder, monkeypatch):
    drawn(folder, "coarse", "fine")
    monkeypatch.setattr(module, "MAX_PNG_BYTES", 1000)
    (folder / "pictures" / "manifest.json").unlink()
    sheets, _ = drawn(folder, "coarse")
    assert sheets["coarse"]["file"] == "coarse.webp"
    left = {file.name for file in (folder / "pictures").iterdir()}
    assert left == {"coarse.webp", "manifest.json"}
    with Image.open(folder / "pictures" / "coarse.webp") as picture:
        assert picture.format == "WEBP"
        assert picture.width == 24 + 4 * (CELL + 12) + 24 - 12


def test_columns_become_narrower_in_all_sheets_if_these_are_too_large(folder, monkeypatch):
    drawn(folder, "coarse", "fine")
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    (folder / "pictures" / "manifest.json").unlink()
    sheets, _ = drawn(folder, "coarse", "fine")
    for sheet in sheets.values():
        with Image.open(folder / "pictures" / sheet["file"]) as picture:
            assert picture.width == 24 + 4 * (136 + 12) + 24 - 12


def test_a_full_disk_is_not_taken_for_a_method_that_cannot_be_drawn(folder, monkeypatch):
    def full(*_, **__):
        raise DataError("the disk is full")

    monkeypatch.setattr(module, "contact_sheet", full)
    with pytest.raises(DataError, match="disk is full"):
        drawn(folder, "coarse")
