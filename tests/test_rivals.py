"""A comparison judges weights from elsewhere beside its methods, and as their start."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

import mimkit
from mimkit import DataError, MimkitError, RecipeError
from mimkit.files import sha256
from mimkit.pipeline import run as pipeline
from mimkit.pipeline.exporting import export_run
from mimkit.recipe.schema import load
from mimkit.study import measuring
from mimkit.study.folder import is_finished, recipe_path
from mimkit.study.records import Trial

ID = "timm:test_vit.r160_in1k"
DATA = "pictures"
KNN = {"evaluate": ["knn"], "seeds": 1, "jobs": 1, "device": "cpu", "budget": "steps=2"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    random = np.random.default_rng(0)
    for split, count in {"train": 8, "test": 5}.items():
        for label in range(3):
            folder = tmp_path / DATA / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                image = random.integers(0, 120, (20, 20, 3), dtype=np.uint8)
                image[3 * label : 3 * label + 10] += np.uint8(100)
                Image.fromarray(image).save(folder / f"{number}.png")
    return tmp_path


class Here:
    """Measures in this process, as the processes of a comparison do."""

    def __init__(self, folder, device, jobs, console):
        self.device = device

    def measure(self, recipe, label):
        found = measuring.measure(recipe, self.device, Console(quiet=True))
        return Trial(**found.pop("trial")), found

    def map(self, do, methods):
        return [do(method) for method in methods]


def execute_here(plan, folder, *, device, **_):
    """Runs what is not finished in this process, one cell after the other."""
    for cell in plan.cells:
        if not is_finished(cell, folder):
            recipe = load(str(recipe_path(folder, cell.method)), seed=cell.seed)
            pipeline.run(recipe, out=folder / "runs", device=device, console=Console(quiet=True))


@pytest.fixture
def quickly(monkeypatch):
    """Without processes, each of which imports everything anew."""
    monkeypatch.setattr("mimkit.study.conduct.Thorough", Here)
    monkeypatch.setattr("mimkit.study.conduct.execute", execute_here)


@pytest.fixture
def method(here, tiny):
    """A recipe of these pictures."""
    text = tiny.read_text().replace('"shapes"', f'"{DATA}"')
    text = text.replace("num_images = 48\nnum_test_images = 16\n", "")
    (here / "mine.toml").write_text(text.replace('name = "tiny"', 'name = "mine"'))
    return "mine.toml"


@pytest.fixture
def run(here, method):
    settings = ["train.total_steps=4", "evaluate=[]", "name='elder'"]
    return mimkit.run(method, settings=settings, device="cpu")


def exported(run, format_="safetensors"):
    file = Path(f"{format_}.safetensors")
    export_run(run, format_, file, Console(quiet=True))
    return file


def public(name="test_vit", **options):
    """The file of a public model, which has no network to come from."""
    torch.manual_seed(0)
    file = Path(f"{name}.safetensors")
    save_file(timm.create_model(name, **options).state_dict(), file)
    return file


def knn(folder, label, init="pretrained"):
    found = json.loads((folder / "runs" / label / "0" / "results.json").read_text())["results"]
    (value,) = [r["value"] for r in found if (r["evaluator"], r["init"]) == ("knn", init)]
    return value


def test_a_run_a_file_and_public_weights_are_columns_of_one_table(quickly, run, method):
    file, weights = exported(run), public()
    found = mimkit.compare([method], against=[run, file, f"{ID}={weights}"], **KNN)
    labels = ["mine", "elder-0", "safetensors", "test_vit.r160_in1k"]
    assert found.labels == labels
    assert not found.refused
    (row,) = [one.row for one in found.verdicts if one.row.evaluator == "knn"]
    assert list(row.values) == labels
    # Judged as `mimkit evaluate` judges the run itself, by the same evaluations.
    table = tomllib.loads((found.folder / "recipes/mine.toml").read_text())["evaluate"]
    options = next(each for each in table if each["part"] == "knn")
    known = mimkit.evaluate(run, settings=[f"evaluate=[{inline(options)}]"], device="cpu")
    (value,) = known.verdicts[0].row.values["pre-training"]["pretrained"].values()
    assert row.values["elder-0"]["pretrained"] == {0: value}
    assert row.values["safetensors"]["pretrained"] == {0: value}
    # Its own size and normalisation, and said what it is.
    recipe = tomllib.loads((found.folder / "recipes/test_vit.r160_in1k.toml").read_text())
    assert recipe["data"]["image_size"] == [160, 160]
    assert recipe["data"]["mean"] == [0.5, 0.5, 0.5]
    assert recipe["train"]["start_sha256"] == sha256(weights)
    page = (found.folder / "report.html").read_text()
    assert "license apache-2.0" in page
    assert "160 x 160 px in patches of 16 px" in page
    assert "parameters" in page
    assert "trained elsewhere, judged alike" in page
    arm = next(arm for arm in found.arms if arm.label == labels[-1])
    assert arm.planned.images == 0


def inline(options):
    values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
    return f"{{{values}}}"


@pytest.mark.slow
def test_a_method_is_run_from_scratch_and_from_weights_side_by_side(run, method):
    found = mimkit.compare([method], start_from=[run], against=[run], **KNN)
    assert found.labels == ["mine", "mine-from-elder-0", "elder-0"]
    ledgers = {
        label: json.loads((found.folder / "runs" / label / "0" / "ledger.json").read_text())
        for label in found.labels
    }
    assert [each["steps"] for each in ledgers.values()] == [2, 2, 0]
    digest = sha256(run / "encoder.safetensors")
    held = [each.get("started_from", {}).get("sha256") for each in ledgers.values()]
    assert held == [None, digest, digest]
    continued = load_file(found.folder / "runs/mine-from-elder-0/0/encoder.safetensors")
    before = load_file(run / "encoder.safetensors")
    moved = {name: (continued[name] - tensor).abs().max() for name, tensor in before.items()}
    assert 0 < moved["blocks.0.attn.qkv.weight"] < 0.01
    assert knn(found.folder, "mine", "random") == knn(found.folder, "mine-from-elder-0", "random")


def test_methods_that_do_not_take_the_weights_are_left_out(quickly, run, method, capsys):
    text = (
        Path(method)
        .read_text()
        .replace('"mine"', '"wide"')
        .replace("embed_dim = 16", "embed_dim = 32")
    )
    Path("wide.toml").write_text(text)
    found = mimkit.compare([method, "wide.toml"], start_from=[run], **KNN)
    assert found.labels == ["mine", "wide", "mine-from-elder-0"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"left out: wide from {run}: {run}: its weights must fit the encoder" in said


def test_without_a_network_the_others_are_compared_and_it_is_said(quickly, method, capsys):
    found = mimkit.compare([method], against=[ID], start_from=[ID], **KNN)
    assert found.labels == ["mine"]
    assert [one.state for one in found.outcomes] == ["finished"]
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"left out: {ID}: the weights could not be had") == 2
    # Later they are there: the same comparison goes on, and what was run is not run again.
    before = (found.folder / "runs/mine/0/ledger.json").stat().st_mtime_ns
    again = mimkit.compare([method], against=[f"{ID}={public()}"], **KNN)
    assert again.labels == ["mine", "test_vit.r160_in1k"]
    assert [one.state for one in again.outcomes] == ["finished"] * 2
    assert (found.folder / "runs/mine/0/ledger.json").stat().st_mtime_ns == before


def test_a_resnet_is_a_rival_too(quickly, method):
    name = "resnet10t.c3_in1k"
    weights = public(name.partition(".")[0])
    found = mimkit.compare([method], against=[f"timm:{name}={weights}"], **KNN)
    assert [one.state for one in found.outcomes] == ["finished"] * 2
    recipe = tomllib.loads((found.folder / f"recipes/{name}.toml").read_text())
    assert recipe["data"]["patch_size"] == 16  # of 176 px


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"against": ["nowhere.pth"]}, "there is no such file"),
        ({"against": ["odd.safetensors"]}, "must say which network it is of"),
        ({"against": ["bad.pth"]}, "damaged, cut off or something else"),
        ({"against": ["timm:test_vti"]}, "Did you mean 'test_vit'"),
        ({"start_from": ["odd.safetensors"]}, "no method can begin so"),
        ({"against": ["RUN", "RUN"]}, "'elder-0' is named twice"),
    ],
)
def test_what_cannot_be_is_one_message_before_anything_is_run(
    quickly, run, method, options, reason
):
    save_file({"conv.weight": torch.ones(3)}, "odd.safetensors")
    Path("bad.pth").write_bytes(b"\x80\x04\x95nonsense")
    asked = {k: [str(run) if each == "RUN" else each for each in v] for k, v in options.items()}
    with pytest.raises((DataError, RecipeError), match=reason):
        mimkit.compare([method], **asked, out="out", **KNN)
    assert not list(Path("out").glob("runs/*"))


def test_weights_that_change_between_two_seeds_stop_the_comparison(quickly, run, method):
    file = exported(run)
    found = mimkit.compare([method], against=[file], out="out", **KNN)
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file)
    with pytest.raises(MimkitError, match="is another one than when the comparison"):
        mimkit.compare([method], against=[file], out="out", **{**KNN, "seeds": 2})
    assert knn(found.folder, "safetensors") >= 0
