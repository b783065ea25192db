"""What a run's encoder is exported as gives what it gives, in the program it is meant for."""

import json

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from mimkit import (
    DataError,
    Encoder,
    Exporter,
    Geometry,
    Grid,
    PluginError,
    RecipeError,
    Tokens,
    View,
)
from mimkit.builtin.encoders import ViT
from mimkit.export.base import Exportable, allowed, difference, exporter
from mimkit.pipeline.exporting import export_run
from mimkit.recipe import registry
from mimkit.recipe.tables import PartTable
from mimkit.train.encoder_file import load_encoder, save_encoder

GRID, OBLONG = Grid(4, 4, 4), Grid(3, 5, 4)
OPTIONS = {"embed_dim": 16, "depth": 2, "num_heads": 2}
ALL = ["onnx", "safetensors", "timm", "torch-export", "transformers"]


def vit(grid=GRID, channels=3, **options):
    """A small encoder without any parameter that is 0 or 1 throughout."""
    torch.manual_seed(0)
    encoder = ViT(Geometry(grid, channels), **(OPTIONS | options)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.requires_grad_(False)


def table_of(cls, name, distribution, options):
    return PartTable(
        kind="encoders",
        name=name,
        cls=cls,
        options=options,
        distribution=distribution,
        version="1.0",
    )


def run_of(folder, encoder, name="vit", grid=GRID, channels=3, **options):
    """A run folder with this encoder, as training leaves it."""
    folder.mkdir()
    table = table_of(ViT, name, "mimkit", {**OPTIONS, **options})
    view = View("image", grid.image_size, (0.4,) * channels, (0.2,) * channels)
    save_encoder(folder, encoder, table, Geometry(grid, channels), view)
    return folder


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path / "run", vit())


def exported(run, format_, out):
    console = Console(record=True, width=200)
    export_run(run, format_, out, console)
    return console.export_text()


def tokens_of(run, image):
    tokens = load_encoder(run).features(image)
    return torch.cat([tokens.prefix, tokens.patches], dim=1)


def images(grid=GRID, channels=3, batch_size=3):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch_size, channels, *grid.image_size, generator=generator)


def assert_equal(one, other):
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------- each format in its own program


def test_timm_makes_the_model_that_the_facts_name(run, tmp_path):
    exported(run, "timm", tmp_path / "out.safetensors")
    about = json.loads((tmp_path / "out.json").read_text())
    model = timm.create_model(
        about["model"], checkpoint_path=tmp_path / "out.safetensors", **about["options"]
    )
    with torch.no_grad():
        assert_equal(model.eval().forward_features(images()), tokens_of(run, images()))
    assert about["image_size"] == [16, 16]
    assert about["mean"] == [0.4, 0.4, 0.4]


@pytest.mark.parametrize("grid", [GRID, OBLONG])
def test_transformers_loads_the_folder(tmp_path, grid):
    transformers = pytest.importorskip("transformers")
    run = run_of(tmp_path / "run", vit(grid), grid=grid)
    exported(run, "transformers", tmp_path / "hub")
    model = transformers.AutoModel.from_pretrained(tmp_path / "hub").eval()
    image = images(grid)
    with torch.no_grad():
        answer, own = model(image), load_encoder(run).features(image)
    assert_equal(answer.last_hidden_state, tokens_of(run, image))
    assert_equal(answer.pooler_output, own.patches.mean(dim=1))


def test_transformers_makes_images_what_the_encoder_was_shown(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    exported(run, "transformers", tmp_path / "hub")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hub")
    grey = torch.full((20, 30, 3), 255, dtype=torch.uint8).numpy()
    pixels = processor(grey, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert_equal(pixels, torch.full((1, 3, 16, 16), (1 - 0.4) / 0.2))


def test_timm_loads_the_same_folder_also_for_another_task(run, tmp_path):
    exported(run, "transformers", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True, num_classes=7)
    with torch.no_grad():
        assert_equal(model.eval().forward_features(images()), tokens_of(run, images()))
        assert model(images()).shape == (3, 7)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 16, 16)
    assert list(config["mean"]) == [0.4, 0.4, 0.4]
    assert config["crop_pct"] == 1.0


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_of_other_channels_are_loaded_as_they_are(tmp_path, channels):
    run = run_of(tmp_path / "run", vit(channels=channels), channels=channels)
    exported(run, "transformers", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    image = images(channels=channels)
    with torch.no_grad():
        assert_equal(model.eval().forward_features(image), tokens_of(run, image))


@pytest.mark.parametrize("grid", [GRID, OBLONG])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_graph_of_torch_answers_batches_of_any_size(tmp_path, grid, batch_size):
    run = run_of(tmp_path / "run", vit(grid), grid=grid)
    exported(run, "torch-export", tmp_path / "out.pt2")
    graph, image = torch.export.load(tmp_path / "out.pt2").module(), images(grid, 3, batch_size)
    answer, own = graph(image), load_encoder(run).features(image)
    assert_equal(answer["patches"], own.patches)
    assert_equal(answer["prefix"], own.prefix)
    assert_equal(answer["pooled"], own.patches.mean(dim=1))


def test_onnx_runtime_answers_batches_of_any_size(run, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    exported(run, "onnx", tmp_path / "out.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
    assert [each.name for each in session.get_inputs()] == ["image"]
    for batch_size in (1, 2, 5):
        image = images(GRID, 3, batch_size)
        pooled, patches = session.run(["pooled", "patches"], {"image": image.numpy()})
        own = load_encoder(run).features(image)
        assert_equal(torch.from_numpy(patches), own.patches)
        assert_equal(torch.from_numpy(pooled), own.patches.mean(dim=1))
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["mimkit.image_size"] == "[16, 16]"


def test_an_encoder_without_prefix_has_no_such_answer(tmp_path):
    run = run_of(tmp_path / "run", vit(class_token=False), class_token=False)
    exported(run, "torch-export", tmp_path / "out.pt2")
    graph = torch.export.load(tmp_path / "out.pt2").module()
    assert graph(images()).keys() == {"pooled", "patches"}


def test_a_graph_refuses_images_of_another_size(run, tmp_path):
    exported(run, "torch-export", tmp_path / "out.pt2")
    graph = torch.export.load(tmp_path / "out.pt2").module()
    with pytest.raises((AssertionError, RuntimeError), match="16"):
        graph(torch.zeros(1, 3, 20, 20))


@pytest.mark.parametrize("format_", ALL)
def test_the_lines_that_are_printed_load_it(run, format_):
    if format_ == "onnx":
        pytest.importorskip("onnxscript")
    said = exported(run, format_, None)
    lines = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    given = {"image": images()}
    if format_ == "onnx":
        given["image"] = given["image"].numpy()
    exec("\n".join(lines), given)  # the very lines that a user would paste
    loaded = {"torch-export": "features", "onnx": "pooled", "safetensors": "tensors"}
    assert given[loaded.get(format_, "model")] is not None
    assert ("answers as the run's encoder does" in said) == (format_ != "safetensors")


# --------------------------------------------------------------------------------- what is refused


class Odd(Encoder):
    """An encoder of a third party, which timm has not and whose branch no graph holds."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.embed_dim = 3
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, image, context=None, hidden=None):
        mean = image.mean(dim=(2, 3))[:, None] * self.weight
        if mean.sum().item() > 0:
            mean = -mean
        return Tokens(mean, mean[:, :0], torch.zeros(len(mean), 1, dtype=torch.int64))

    def backbone(self, grid=None):
        raise NotImplementedError


def source(encoder):
    return Exportable(encoder.eval().requires_grad_(False), View("image", (16, 16)), 3)


def odd_run(folder, monkeypatch):
    real = registry.entries
    entry = registry.Entry("encoders", "odd", "mimkit-odd", "1.0", f"{__name__}:Odd")
    monkeypatch.setattr(
        registry, "entries", lambda kind: [*real(kind), *([entry] if kind == "encoders" else [])]
    )
    monkeypatch.setattr("mimkit.train.encoder_file.load", lambda found: Odd)
    folder.mkdir()
    table = table_of(Odd, "odd", "mimkit-odd", {})
    save_encoder(folder, Odd(Geometry(GRID)), table, Geometry(GRID), View("image", (16, 16)))
    return folder


@pytest.mark.parametrize("format_", ["timm", "transformers"])
def test_an_encoder_that_timm_has_not_is_told_what_it_may_be(tmp_path, monkeypatch, format_):
    run = odd_run(tmp_path / "run", monkeypatch)
    out = tmp_path / f"out{exporter(format_).suffix}"
    with pytest.raises(RecipeError) as told:
        exported(run, format_, out)
    assert str(told.value) == (
        f"encoder 'odd' cannot be exported as {format_}: Odd is none of timm's models. "
        "Choose --format onnx or safetensors or torch-export."
    )
    assert not out.exists()


def test_what_cannot_be_traced_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    run = odd_run(tmp_path / "run", monkeypatch)
    with pytest.raises(RecipeError, match=r"as torch-export: Odd computes what torch\.export"):
        exported(run, "torch-export", tmp_path / "out.pt2")
    assert not (tmp_path / "out.pt2").exists()


def test_a_name_must_have_the_ending_by_which_programs_know_it(run, tmp_path):
    with pytest.raises(DataError, match=r"must end in \.pt2, by which programs know what it is"):
        exported(run, "torch-export", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_unknown_format_is_answered_with_the_nearest(run):
    with pytest.raises(PluginError, match="Did you mean 'transformers'"):
        exported(run, "transformer", None)


def test_a_missing_package_is_told_with_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs onnxscript.*pip install 'mimkit\[onnx\]'"):
        exporter("onnx")


def test_a_class_without_a_name_in_timm_is_a_state_dict_alone(run, tmp_path, monkeypatch):
    def by_class(self):
        whole = described(self)
        return type(whole)(
            "timm.models.vision_transformer:VisionTransformer", whole.options, whole.tensors
        )

    described = ViT.timm_model
    monkeypatch.setattr(ViT, "timm_model", by_class)
    said = exported(run, "timm", tmp_path / "out.safetensors")
    assert "from timm.models.vision_transformer import VisionTransformer" in said
    with pytest.raises(RecipeError, match="none of the names of timm"):
        exported(run, "transformers", tmp_path / "hub")
    assert allowed(source(vit())) == ["onnx", "safetensors", "timm", "torch-export"]


class Wrong(Exporter):
    suffix = ".txt"

    def write(self, source, out):
        out.write_text("")
        return []

    def reload(self, out):
        return lambda image: {"pooled": torch.ones(len(image), 16)}


def test_what_answers_otherwise_is_an_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mimkit.pipeline.exporting.exporter", lambda name: Wrong())
    with pytest.raises(PluginError, match=r"out\.txt: must give what .* but differs by up to"):
        exported(run, "wrong", tmp_path / "out.txt")


def test_shapes_that_differ_are_told():
    encoder = source(vit())
    with pytest.raises(PluginError, match=r"must give pooled \(3, 16\), .* but gives pooled"):
        difference(encoder, lambda image: {"pooled": torch.ones(len(image), 5)})


def test_a_folder_that_holds_something_is_left_as_it_is(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(Exception, match=r"new or empty, but holds thesis\.txt"):
        exported(run, "transformers", tmp_path / "mine")
    with pytest.raises(Exception, match="new or empty, but is a file"):
        exported(run, "transformers", tmp_path / "mine" / "thesis.txt")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
