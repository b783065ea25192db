"""A run begins with weights from elsewhere, says what became of them, and refuses others."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from pretraining import here as pretrained_only
from pretraining import ledger
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import mimkit
from mimkit import DataError, TrainingError, sincos
from mimkit.cli import app
from mimkit.files import sha256
from mimkit.parts.records import Grid
from mimkit.pipeline.exporting import export_run
from mimkit.pipeline.start.hub import UnreachableError
from mimkit.pipeline.start.weights import find_weights

ID = "timm:test_vit.r160_in1k"
TIMM = 'encoder={part="timm", model="test_vit", mask_token=true}'
NONE = ("train.total_steps=0", "evaluate=[]")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def run(here, tiny):
    return mimkit.run(tiny, settings=["train.total_steps=4", "evaluate=[]"], device="cpu")


def started(tiny, source, *settings, name="second", **options):
    every = [f"name='{name}'", *NONE, *settings]
    return mimkit.run(tiny, settings=every, start_from=source, device="cpu", **options)


def public_vit(**options):
    """A model of timm as its public file would hold it: with a classifier, no mask token."""
    torch.manual_seed(0)
    return timm.create_model("test_vit", **options)


def into_cache(model, here, repo="timm/test_vit.r160_in1k"):
    """Lays a file into the Hub's cache, as a download leaves it."""
    folder = here / "hub" / f"models--{repo.replace('/', '--')}"
    commit = "0" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# ------------------------------------------------------------------------------ what is taken


def test_a_run_gives_its_encoder_and_nothing_else(run, tiny):
    second = started(tiny, run)
    mine, theirs = (load_file(each / "encoder.safetensors") for each in (second, run))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    held = ledger(second)["started_from"]
    assert held["source"] == str(run)
    assert held["sha256"] == sha256(run / "encoder.safetensors")
    assert held["encoder"]["loaded"] == len(theirs)
    assert not held["encoder"]["new"]
    assert "head" not in held


def test_head_and_optimizer_come_where_they_are_asked_for(run, tiny, here):
    """The head begins where it ended, and the optimizer counts on."""
    everything = 'train.start_parts=["encoder", "head", "targets", "optimizer"]'
    source = f"train.start_from='{run}'"
    one = ("train.total_steps=1", "train.lr=1e-9")
    said = pretrained_only(tiny, here / "all", source, everything, *one)
    saved = load_file(run / "checkpoints/step_00000004.safetensors")
    states = sum(name.endswith(".exp_avg") for name in saved)
    assert f"optimizer: state of {states} weights loaded" in said
    pretrained_only(tiny, here / "encoder", source, *one)
    files = [here / name / "checkpoints/step_00000001.safetensors" for name in ("all", "encoder")]
    whole, alone = map(load_file, files)
    name = "head.predictors.pixels.weight"
    assert (whole[f"model.{name}"] - saved[f"model.{name}"]).abs().max() < 1e-6
    assert (alone[f"model.{name}"] - saved[f"model.{name}"]).abs().max() > 1e-3
    step = "optimizer.encoder.norm.bias.step"
    assert (float(whole[step]), float(alone[step])) == (5.0, 1.0)


def test_a_teacher_begins_as_the_encoder_that_was_taken(run, tiny, here):
    teacher = (
        "targets={pixels={part='latent', sees='all', momentum=0.9}}",
        "losses={pixels={part='mse'}}",
    )
    pretrained_only(tiny, here / "t", f"train.start_from='{run}'", *teacher, "train.lr=1e-9")
    held = load_file(here / "t" / "checkpoints/step_00000012.safetensors")
    given = load_file(run / "encoder.safetensors")
    for name in ("norm.weight", "blocks.0.attn.qkv.weight"):
        taken = held[f"model.targets.pixels.teacher.{name}"]
        torch.testing.assert_close(taken, given[name], atol=1e-5, rtol=0)


def test_baselines_stay_random(run, tiny):
    """What a pre-trained encoder is compared with must not have its weights."""
    settings = ["evaluate=[{part='knn', k=5}]"]
    one = started(tiny, run, *settings)
    scratch = mimkit.run(tiny, settings=["name='s'", *NONE, *settings], device="cpu")

    def values(folder, init):
        found = json.loads((folder / "results.json").read_text())["results"]
        return [r["value"] for r in found if r["init"] == init]

    assert values(one, "random") == values(scratch, "random")


@pytest.mark.parametrize("format_", ["safetensors", "timm"])
def test_an_exported_file_is_as_good_as_the_run(run, tiny, here, format_):
    file = here / "public.safetensors"
    export_run(run, format_, file, Console(quiet=True))
    second = started(tiny, file)
    mine, theirs = (load_file(each / "encoder.safetensors") for each in (second, run))
    for name, tensor in theirs.items():
        if name == "mask_token" and format_ == "timm":
            assert ledger(second)["started_from"]["encoder"]["new"] == ["mask_token"]
        else:
            assert torch.equal(mine[name], tensor)


@pytest.mark.parametrize("size", [16, 24])
def test_positions_of_another_grid_are_resampled_and_said(run, tiny, here, size):
    learned = 'encoder.positions="learned"'
    first = mimkit.run(tiny, settings=["name='l'", *NONE, learned], device="cpu")
    said = CliRunner().invoke(
        app,
        ["run", str(tiny), "--from", str(first), "--device", "cpu", "--set", learned]
        + [
            word
            for each in ("name='z'", *NONE, f"data.image_size={size}")
            for word in ("--set", each)
        ],
    )
    assert said.exit_code == 0, said.output
    resampled = ["pos_embed"] if size == 24 else []
    assert ledger(Path("runs/z/0"))["started_from"]["encoder"]["resampled"] == resampled
    assert ("resampled: pos_embed" in said.output) == (size == 24)
    fixed = started(tiny, run, f"data.image_size={size}", name="fixed")
    mine = load_file(fixed / "encoder.safetensors")["pos_embed"]
    side = size // 4
    assert torch.equal(mine[0, 1:], sincos(Grid(side, side, 4), 16))


def test_weights_for_rgb_are_summed_for_grey_images_and_it_is_said(run, tiny, capsys):
    second = started(tiny, run, "data.channels=1")
    (mine,), (theirs,) = (
        [tensor for tensor in load_file(each / "encoder.safetensors").values() if tensor.ndim == 4]
        for each in (second, run)
    )
    assert mine.shape[1] == 1
    assert torch.allclose(mine, theirs.sum(1, keepdim=True), atol=1e-6)
    assert (
        "red, green and blue are summed" in ledger(second)["started_from"]["encoder"]["adapted"][0]
    )
    assert "summed for 1 channel" in capsys.readouterr().out


def test_public_weights_come_from_the_cache_of_the_hub(here, tiny, offline):
    model = public_vit()
    file = into_cache(model, here)
    said = CliRunner().invoke(
        app,
        ["run", str(tiny), "--from", ID, "--device", "cpu"]
        + [word for each in ("name='p'", *NONE, TIMM) for word in ("--set", each)],
    )
    assert said.exit_code == 0, said.output
    held = ledger(Path("runs/p/0"))["started_from"]
    assert held["license"] == "apache-2.0"
    assert held["sha256"] == sha256(file)
    # Of 160 px in patches of 16 come 16 px in patches of 4.
    assert {name.rpartition("model.")[2] for name in held["encoder"]["resampled"]} == {
        "pos_embed",
        "patch_embed.proj.weight",
    }
    assert held["encoder"]["new"] == ["encoder.mask_token"]
    assert set(held["encoder"]["left_out"]) == {"head.weight", "head.bias"}
    assert "begins with" in Path("runs/p/0/report.html").read_text()
    assert "these weights are used to pixels of another std" in said.output
    mine = load_file("runs/p/0/encoder.safetensors")
    assert torch.equal(mine["encoder.model.blocks.5.norm2.bias"], model.blocks[5].norm2.bias)


def test_a_file_of_a_named_model_needs_no_network(here, tiny, offline):
    model = public_vit()
    save_file(model.state_dict(), "w.safetensors")
    run = started(tiny, f"{ID}=w.safetensors", TIMM)
    assert ledger(run)["started_from"]["license"] == "apache-2.0"
    vit = 'encoder={part="vit", embed_dim=64, depth=6, num_heads=2, mlp_ratio=3.0, mask_token=true}'
    learned = "encoder.positions='learned'"
    plain = started(tiny, f"{ID}=w.safetensors", vit, learned, name="plain")
    mine = load_file(plain / "encoder.safetensors")
    assert torch.equal(mine["blocks.5.norm2.bias"], model.blocks[5].norm2.bias)


# ------------------------------------------------------------------------------ going on


def test_a_run_goes_on_although_its_weights_are_gone(run, tiny, here):
    source = f"train.start_from='{run}'"
    pretrained_only(tiny, here / "a", source)
    shutil.copytree(here / "a", here / "b")
    for file in (here / "b" / "checkpoints").glob("step_00000012*"):
        file.unlink()
    shutil.rmtree(run)
    said = pretrained_only(tiny, here / "b", source)
    assert "going on at step 10 of 12" in said
    one, other = (
        load_file(here / name / "checkpoints/step_00000012.safetensors") for name in ("a", "b")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert ledger(here / "b")["started_from"] == ledger(here / "a")["started_from"]


def test_other_weights_in_the_place_of_the_first_are_refused(run, tiny, here):
    file = here / "w.safetensors"
    export_run(run, "safetensors", file, Console(quiet=True))
    four = ("train.total_steps=4",)
    second = started(tiny, file, *four)
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    with pytest.raises(DataError, match="began with other weights than"):
        started(tiny, file, *four)
    with pytest.raises(DataError, match="must be the weights that this recipe was begun with"):
        mimkit.run(second / "recipe.toml", out="elsewhere", device="cpu")
    assert mimkit.run(second, device="cpu") == second
    assert started(tiny, file, *four, fresh=True) == second


def test_in_the_place_of_a_run_that_nan_stopped_it_begins_with_the_weights(
    run, tiny, here, monkeypatch
):
    settings = ["name='second'", "train.total_steps=4", "evaluate=[]"]
    with monkeypatch.context() as patch:
        forward = "mimkit.builtin.losses.MSE.forward"
        patch.setattr(forward, lambda _, p, t, v: (p - t).square().mean(-1) * float("nan"))
        every = [*settings, "train.lr=9.0", "train.checkpoint_every_steps=1"]
        with pytest.raises(TrainingError):
            mimkit.run(tiny, settings=every, device="cpu")
    assert list((here / "runs/second/0/checkpoints").glob("*.json"))
    second = mimkit.run(tiny, settings=[*settings, "train.lr=1e-9"], start_from=run, device="cpu")
    mine, theirs = (load_file(each / "encoder.safetensors") for each in (second, run))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------ refusals


class Evil:
    def __reduce__(self):
        return (Path("owned").touch, ())


def broken(kind, run):
    if kind == "pickle":
        with open("bad.pth", "wb") as file:
            pickle.dump({"model": Evil()}, file)
        return "bad.pth"
    if kind == "cut":
        export_run(run, "safetensors", Path("cut.safetensors"), Console(quiet=True))
        Path("cut.safetensors").write_bytes(Path("cut.safetensors").read_bytes()[:-100])
        return "cut.safetensors"
    if kind == "others":
        save_file({"conv.weight": torch.ones(3)}, "others.safetensors")
        return "others.safetensors"
    if kind == "no run":
        Path("empty").mkdir()
        return "empty"
    return kind


@pytest.mark.parametrize(
    ("source", "settings", "reason"),
    [
        ("nowhere.pth", (), "there is no such file"),
        ("no run", (), "holds no recipe.toml"),
        ("pickle", (), "damaged, cut off or something else|making it could run any code"),
        ("cut", (), "damaged or cut off"),
        ("others", (), r"must hold the weights of this encoder, .* called conv\.weight"),
        ("RUN", ("encoder.embed_dim=32",), r"its weights must fit .* instead of \("),
        ("RUN", ("encoder.depth=4",), "must hold the weights of this encoder, but"),
        ("RUN", ("encoder.depth=1",), "as of a deeper one"),
        ("RUN", ('train.start_parts=["head"]', "head.cut_init=true"), ""),
        ("timm:test_vti.r160_in1k", (), "Did you mean 'test_vit'"),
        ("timm:test_vit.r160_in2k", (), "There are: test_vit.r160_in1k"),
        (ID, (), "could not be had from the Hugging Face Hub"),
        (f"{ID}=nowhere", (), "there is no nowhere"),
    ],
)
def test_what_cannot_be_is_one_message_and_leaves_nothing(
    run, tiny, here, offline, source, settings, reason
):
    source = str(run) if source == "RUN" else broken(source, run)
    if not reason:  # a head that fits is no fault
        assert started(tiny, source, *settings)
        return
    with pytest.raises(DataError, match=reason):
        started(tiny, source, *settings)
    assert not Path("owned").exists()
    assert not (here / "runs/second/0/recipe.toml").exists()


def test_an_encoder_alone_has_no_head_to_give(run, tiny, here):
    export_run(run, "safetensors", here / "w.safetensors", Console(quiet=True))
    with pytest.raises(DataError, match="holds an encoder alone, without head"):
        started(tiny, "w.safetensors", 'train.start_parts=["encoder", "head"]')


def test_without_a_network_the_message_names_what_to_download(here, monkeypatch):
    def refuse(*_, **__):
        raise LocalEntryNotFoundError("Cannot find the requested files in the disk cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UnreachableError, match=r"download model\.safetensors of timm/test_vit"):
        find_weights(ID)


def test_a_download_is_asked_for_once_and_used(here, monkeypatch):
    model = public_vit()
    save_file(model.state_dict(), here / "got.safetensors")
    asked = []

    def download(repo, file, **_):
        asked.append((repo, file))
        return str(here / "got.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = find_weights(ID)
    assert asked == [("timm/test_vit.r160_in1k", "model.safetensors")]
    assert found.grid == Grid(10, 10, 16)
    assert torch.equal(found.encoder["norm.bias"], model.norm.bias)
    assert found.settings["data"]["mean"] == [0.5, 0.5, 0.5]
