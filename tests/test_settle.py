"""Options such as "auto" are decided once, and stay decided for the run."""

import tomllib
from typing import ClassVar

import pytest
import torch

from mimkit import DataError, Geometry, Preparation, View
from mimkit.builtin.encoders import ViT
from mimkit.builtin.heads import LinearHead
from mimkit.builtin.losses import MSE
from mimkit.builtin.maskers import RandomMasker
from mimkit.builtin.targets import Pixels
from mimkit.evaluate.heldout import HeldOut
from mimkit.folder import RunFolder
from mimkit.pipeline.run import run
from mimkit.recipe.schema import load, resolved
from mimkit.recipe.settle import settle

VIEW = View("image", (16, 16), (0.0,) * 3, (1.0,) * 3)


class Choosy(Pixels):
    """Pixels, normalised or not as this machine has it."""

    here: ClassVar[str] = "yes"
    prepared_with: ClassVar[list[str]] = []

    def __init__(self, geometry: Geometry, *, normal: str = "auto", scale: int = 1) -> None:
        super().__init__(geometry, normalize=normal == "yes")
        self.normal = normal

    @classmethod
    def settle(cls, options, say):
        if options["normal"] != "auto":
            return options
        say(f"normal: {cls.here}")
        return {**options, "normal": cls.here}

    def prepare(self, images, workdir, *, device, say):
        self.prepared_with.append(self.normal)
        first = images.view(torch.arange(2), VIEW)
        return Preparation("a choice", 1.5, False, {"images": len(images)}, {"first": first})


@pytest.fixture
def choosy(register, tiny):
    register("maskers", "random", RandomMasker)
    register("encoders", "vit", ViT)
    register("targets", "pixels", Choosy)
    register("heads", "linear", LinearHead)
    register("losses", "mse", MSE)
    register("datasets", "shapes", "mimkit.data.registered:SHAPES")
    register("evaluators", "heldout", HeldOut)
    Choosy.here, Choosy.prepared_with = "yes", []
    return tiny


def written(folder):
    return tomllib.loads((folder / "recipe.toml").read_text())["targets"]["pixels"]


def test_what_is_open_is_settled_and_said(choosy):
    said = []
    settled = settle(load(str(choosy)), said.append)
    assert settled.targets["pixels"].options == {"normal": "yes", "scale": 1}
    assert said == ["normal: yes"]
    assert settle(settled, said.append).same_as(settled)
    assert len(said) == 1


def test_a_run_writes_the_decision_down_and_goes_on_with_it(choosy, tmp_path):
    folder = run(load(str(choosy)), out=tmp_path, device="cpu")
    assert written(folder)["normal"] == "yes"
    Choosy.here = "no"  # another day, another answer
    run(load(str(choosy)), out=tmp_path, device="cpu")
    assert Choosy.prepared_with == ["yes", "yes"]
    run(load(str(choosy)), out=tmp_path, device="cpu", fresh=True)
    assert written(folder)["normal"] == "no"


def test_what_a_folder_leaves_open_its_first_run_settles(choosy, tmp_path):
    folder = tmp_path / "imported"
    with RunFolder(folder, writable=True) as imported:
        imported.recipe.write_text(resolved(load(str(choosy))))
    assert written(folder)["normal"] == "auto"
    run(load(str(folder / "recipe.toml")), folder=folder, device="cpu")
    assert written(folder)["normal"] == "yes"
    Choosy.here = "no"
    run(load(str(folder / "recipe.toml")), folder=folder, device="cpu")
    assert Choosy.prepared_with == ["yes", "yes"]


def test_what_the_user_asks_for_outright_is_not_open(choosy, tmp_path):
    run(load(str(choosy)), out=tmp_path, device="cpu")
    other = load(str(choosy), overrides=["targets.pixels.normal=no"])
    with pytest.raises(DataError, match="holds a run of another recipe"):
        run(other, out=tmp_path, device="cpu")
    changed = load(str(choosy), overrides=["targets.pixels.scale=2"])
    with pytest.raises(DataError, match="holds a run of another recipe"):
        run(changed, out=tmp_path, device="cpu")


def test_what_a_target_prepared_is_in_ledger_and_report(choosy, tmp_path):
    folder = run(load(str(choosy)), out=tmp_path, device="cpu")
    prepared = RunFolder(folder).read_ledger()["prepared"]["pixels"]
    assert prepared == {
        "title": "a choice",
        "seconds": 1.5,
        "flops": 0.0,
        "cached": False,
        "facts": {"images": 48},
    }
    assert (folder / "pictures" / "prepared_pixels.png").stat().st_size > 0
    assert "a choice" in (folder / "report.html").read_text()
