"""Another project's checkpoint becomes a run; a run's encoder leaves for elsewhere."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from mimkit import DataError, Imported, Importer
from mimkit.builtin.importers import TimmImporter
from mimkit.data.registered import SHAPES
from mimkit.pipeline.exporting import export_run
from mimkit.pipeline.importing import import_run
from mimkit.pipeline.run import run
from mimkit.recipe import registry
from mimkit.recipe.schema import load
from mimkit.train.encoder_file import load_encoder

OPTIONS = {"embed_dim": 16, "depth": 1, "num_heads": 2, "positions": "learned", "mask_token": True}


class Plain(Importer):
    """Reads a plain state dict of timm's transformer."""

    recipe = "tiny"

    def read(self, file: Path) -> Imported:
        tensors = load_file(file)
        head = {k: v for k, v in tensors.items() if k.startswith("predictors")}
        encoder = {k: v for k, v in tensors.items() if k not in head}
        settings = {"encoder": {"part": "vit", **OPTIONS}, "data": {"image_size": 16}}
        return Imported(settings, encoder, head, ("a plain file",))


@pytest.fixture
def plain(monkeypatch):
    """Registers the importer beside everything that is installed."""
    real = registry.entries
    entry = registry.Entry("importers", "plain", "mimkit-plain", "1.0", f"{__name__}:Plain")
    monkeypatch.setattr(
        registry, "entries", lambda kind: [*real(kind), *([entry] if kind == "importers" else [])]
    )
    monkeypatch.setattr(
        "mimkit.pipeline.importing.load_entry",
        lambda found: Plain if found is entry else pytest.fail("another importer"),
    )


@pytest.fixture
def weights(tmp_path):
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=0
    )
    path = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


def import_here(file, out, recipe, *overrides):
    console = Console(record=True, width=200)
    import_run(
        "plain",
        file,
        out,
        recipe=str(recipe),
        preset=None,
        overrides=overrides,
        data_path=None,
        console=console,
    )
    return console.export_text()


def test_the_run_holds_the_files_weights_and_says_what_is_new(plain, weights, tiny, tmp_path):
    said = import_here(weights, tmp_path / "run", tiny)
    encoder, theirs = load_encoder(tmp_path / "run"), load_file(weights)
    for name, value in theirs.items():
        assert torch.equal(encoder.state_dict()[name], value), name
    assert "note: a plain file" in said
    assert "mask_token not in the file, so new" in said
    assert "holds no head, so it starts anew" in said
    assert f"mimkit run {tmp_path / 'run'}" in said


@pytest.mark.parametrize("channels", [1, 6])
def test_weights_for_rgb_give_the_same_for_images_whose_channels_are_alike(
    plain, weights, tiny, tmp_path, channels
):
    theirs = import_here(weights, tmp_path / "rgb", tiny)
    assert "summed" not in theirs
    settings = ["data.channels=1"] if channels == 1 else ["data.channels=6", 'data.name="six"']
    said = import_here(weights, tmp_path / "run", tiny, *settings)
    how = {1: "summed for 1 channel", 6: "repeated for 6 channels and scaled by 3/6"}[channels]
    assert f"patch_embed.proj.weight: its weights for red, green and blue are {how}" in said
    rgb, other = load_encoder(tmp_path / "rgb"), load_encoder(tmp_path / "run")
    grey = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = rgb.features(grey.expand(-1, 3, -1, -1)).patches
    found = other.features(grey.expand(-1, channels, -1, -1)).patches
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_file_of_other_channels_than_the_recipe_is_refused(plain, weights, tiny, tmp_path):
    tensors = load_file(weights)
    tensors["patch_embed.proj.weight"] = torch.zeros(16, 2, 4, 4)
    save_file(tensors, weights)
    with pytest.raises(DataError, match=r"proj\.weight has shape .* instead of \(16, 5, 4, 4\)"):
        import_here(weights, tmp_path / "run", tiny, "data.channels=5", 'data.name="five"')


def test_it_goes_on_from_these_weights(plain, weights, tiny, tmp_path):
    import_here(weights, tmp_path / "run", tiny, "train.lr=1e-30", "train.weight_decay=0.0")
    folder = tmp_path / "run"
    run(load(str(folder / "recipe.toml")), folder=folder, device="cpu")
    theirs, after = load_file(weights), load_encoder(folder).state_dict()
    for name, value in theirs.items():  # so small a rate that only other weights could differ
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)
    assert json.loads((folder / "ledger.json").read_text())["steps"] == 12


def test_with_zero_steps_it_is_only_evaluated(plain, weights, tiny, tmp_path):
    folder = tmp_path / "run"
    import_here(weights, folder, tiny, "train.total_steps=0")
    run(load(str(folder / "recipe.toml")), folder=folder, device="cpu")
    results = json.loads((folder / "results.json").read_text())
    assert results["results"][0]["evaluator"] == "heldout"
    assert (folder / "report.html").is_file()
    after = load_encoder(folder).state_dict()
    assert all(torch.equal(after[name], value) for name, value in load_file(weights).items())


def test_a_file_that_contradicts_the_recipe_is_refused(plain, weights, tiny, tmp_path):
    message = (
        r"its encoder must fit .* has shape .* instead of .*encoder\.embed_dim is 32, but 16 in "
        r"the file: leave it out, or --set encoder\.embed_dim=16"
    )
    with pytest.raises(DataError, match=message):
        import_here(weights, tmp_path / "run", tiny, "encoder.embed_dim=32")
    assert not (tmp_path / "run" / "recipe.toml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * float("nan"), "norm.bias has 16 of 16 values that are NaN or inf"),
        (lambda tensor: tensor + float("inf"), "norm.bias has 16 of 16 values that are NaN or inf"),
        (
            lambda tensor: tensor.long(),
            "norm.bias is of type int64 instead of a floating-point one",
        ),
        (lambda tensor: tensor[:7].clone(), r"norm.bias has shape \(7,\) instead of \(16,\)"),
    ],
    ids=["NaN", "infinite", "integers", "shape"],
)
def test_no_importer_can_pass_on_what_is_no_weight(plain, weights, tiny, tmp_path, change, message):
    tensors = load_file(weights)
    tensors["norm.bias"] = change(tensors["norm.bias"])
    save_file(tensors, weights)
    with pytest.raises(DataError, match=message):
        import_here(weights, tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("entry", registry.entries("importers"), ids=lambda entry: entry.name)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"norm.weight": torch.tensor([1.0, torch.nan])}, "norm.weight has 1 of 2 values that are"),
        ({"teacher": {"a": torch.tensor([torch.inf])}}, "a has 1 of 1 values that are NaN or inf"),
        (
            {"model": {7: torch.ones(1)}},
            r"names of a state dict must be text, but it has 7 \(int\)",
        ),
        ({"conv1.weight": torch.ones(1)}, r"x\.pth: must be a .*(list importers|Known are)"),
    ],
    ids=["NaN", "infinite", "key", "others"],
)
def test_every_installed_importer_refuses_by_name(entry, content, message, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(DataError, match=message):
        registry.load(entry)().read(tmp_path / "x.pth")


def test_a_refused_file_is_tried_with_the_other_importers(weights, tiny, tmp_path, monkeypatch):
    class Broken(Importer):
        recipe = "tiny"

        def read(self, file):
            raise RuntimeError("of another plugin, which nobody asked for")

    class Choosy(Importer):
        recipe = "tiny"

        def read(self, file):
            raise DataError("file: must be mine, but is not.")

    classes = {"broken": Broken, "plain": Choosy, "timm": TimmImporter, "other": Plain}
    monkeypatch.setattr(
        "mimkit.pipeline.importing.entries",
        lambda _: [registry.Entry("importers", name, "mimkit-x", "1", name) for name in classes],
    )
    monkeypatch.setattr(
        "mimkit.pipeline.importing.find",
        lambda _, name: registry.Entry("importers", name, "mimkit-x", "1", name),
    )
    monkeypatch.setattr("mimkit.pipeline.importing.load_entry", lambda found: classes[found.name])
    message = r"is not\. Importer 'timm' or 'other' reads it: mimkit import timm \S+ --out RUN"
    with pytest.raises(DataError, match=message):
        import_here(weights, tmp_path / "run", tiny)


def test_a_folder_with_a_run_is_not_overwritten(plain, weights, tiny, tmp_path):
    import_here(weights, tmp_path / "run", tiny)
    with pytest.raises(DataError, match="must not hold a run yet"):
        import_here(weights, tmp_path / "run", tiny)


def test_a_missing_file_is_told(plain, tiny, tmp_path):
    with pytest.raises(DataError, match="must be a checkpoint file, but there is none"):
        import_here(tmp_path / "no.pth", tmp_path / "run", tiny)


def test_the_exported_encoder_gives_timm_the_same_features(plain, weights, tiny, tmp_path):
    folder = tmp_path / "run"
    import_here(weights, folder, tiny)
    export_run(folder, "timm", tmp_path / "out.safetensors", Console(quiet=True))
    about = json.loads((tmp_path / "out.json").read_text())
    theirs = VisionTransformer(**about["options"]).eval()
    theirs.load_state_dict(load_file(tmp_path / "out.safetensors"))
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours = load_encoder(folder).backbone()(image)
    torch.testing.assert_close(theirs(image), ours, atol=1e-5, rtol=1e-5)
    assert about["mean"] == list(SHAPES.mean)


def test_the_lines_that_export_prints_load_the_model(plain, weights, tiny, tmp_path):
    folder = tmp_path / "run"
    import_here(weights, folder, tiny)
    console = Console(record=True, width=200)
    export_run(folder, "timm", None, console)
    lines = [line.strip() for line in console.export_text().splitlines() if line.startswith("  ")]
    names = {}
    exec("\n".join(lines), names)  # the very lines that a user would paste
    loaded, own = names["model"].state_dict(), load_encoder(folder).state_dict()
    assert all(torch.equal(value, own[name]) for name, value in loaded.items())


def test_mimkits_own_names_are_exported_as_they_are(plain, weights, tiny, tmp_path):
    import_here(weights, tmp_path / "run", tiny)
    export_run(tmp_path / "run", "safetensors", None, Console(quiet=True))
    own = load_encoder(tmp_path / "run").state_dict()
    exported = load_file(tmp_path / "run" / "safetensors.safetensors")
    assert exported.keys() == own.keys()


def test_a_run_that_only_judges_features_asks_no_target(
    plain, weights, tiny, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("the target was prepared")

    monkeypatch.setattr("mimkit.builtin.targets.Pixels.prepare", refuse)
    monkeypatch.setattr("mimkit.builtin.targets.Pixels.settle", refuse)
    monkeypatch.setattr("mimkit.builtin.targets.Pixels.forward", refuse)
    folder = tmp_path / "run"
    import_here(weights, folder, tiny, "train.total_steps=0", 'evaluate=[{part="knn"}]')
    run(load(str(folder / "recipe.toml")), folder=folder, device="cpu")
    results = json.loads((folder / "results.json").read_text())["results"]
    assert {result["evaluator"] for result in results} == {"knn"}
    assert (folder / "report.html").is_file()
