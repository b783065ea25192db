"""What goes to the Hub: the folder, its card, and what is said where the Hub does not take it."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCardData
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from mimkit import DataError, Geometry, Grid, RecipeError, View
from mimkit.builtin.encoders import ViT
from mimkit.cli import app
from mimkit.folder import RunFolder
from mimkit.ownership import claim
from mimkit.pipeline import pushing
from mimkit.recipe.tables import PartTable
from mimkit.report.model_card import Subject, model_card, public
from mimkit.train.encoder_file import load_encoder, save_encoder

EARLIER = Path(__file__).parent / "earlier" / "comparison" / "runs" / "one" / "0"
GRID = Grid(4, 4, 4)
OPTIONS = {"embed_dim": 16, "depth": 2, "num_heads": 2}
VIEW = View("image", GRID.image_size, (0.4,) * 3, (0.2,) * 3)


@pytest.fixture
def run(tmp_path):
    """A run folder as training left it: real results, ledger and recipe, and an encoder."""
    folder = tmp_path / "run"
    claim(folder, "run")
    for file in EARLIER.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    torch.manual_seed(0)
    encoder = ViT(Geometry(GRID), **OPTIONS)
    table = PartTable(
        kind="encoders", name="vit", cls=ViT, options=OPTIONS, distribution="mimkit", version="1"
    )
    save_encoder(folder, encoder, table, Geometry(GRID), VIEW)
    return folder


def push(run, to=None, out=None, **options):
    console = Console(record=True, width=400)
    pushing.push_run(
        run, to, out, **({"license_": "mit", "private": False} | options), console=console
    )
    return console.export_text()


def card_of(folder):
    """The front matter of a card, and its body."""
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


# ------------------------------------------------------------------------------------ the folder


def test_timm_loads_the_folder_as_it_will_from_the_hub(run, tmp_path):
    push(run, "ann/leaves", tmp_path / "hub")
    assert sorted(file.name for file in (tmp_path / "hub").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        own = load_encoder(run).features(image)
        torch.testing.assert_close(model(image), own.patches.mean(1), atol=1e-5, rtol=1e-5)
    kept = json.loads((tmp_path / "hub" / "config.json").read_text())["pretrained_cfg"]
    assert kept["license"] == "mit"
    assert kept["input_size"] == [3, 16, 16]
    assert kept["mean"] == [0.4, 0.4, 0.4]


def test_a_folder_that_holds_something_is_left_as_it_is(run, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("mine")
    with pytest.raises(DataError, match=r"new or empty, but holds README\.md"):
        push(run, None, tmp_path / "hub")
    assert (tmp_path / "hub" / "README.md").read_text() == "mine"


def test_where_it_goes_must_be_said(run):
    with pytest.raises(RecipeError, match="Give --to USER/NAME, or --out FOLDER"):
        push(run)


@pytest.mark.parametrize("name", ["leaves", "ann/", "ann/leaves/vit", "ann leaves/vit", "-a/b"])
def test_a_name_is_user_and_model(run, name):
    with pytest.raises(RecipeError, match="must be USER/NAME"):
        push(run, name)
    assert not (run / "hub").exists()


# -------------------------------------------------------------------------------------- the card


def test_the_card_says_what_results_and_ledger_say(run, tmp_path):
    push(run, "ann/leaves", tmp_path / "hub", license_="cc-by-4.0")
    front, body = card_of(tmp_path / "hub")
    assert front["license"] == "cc-by-4.0"
    assert front["library_name"] == "timm"
    assert front["model-index"][0]["name"] == "ann/leaves"
    ours = [
        one
        for one in json.loads((run / "results.json").read_text())["summaries"]
        if one["evaluator"] == "knn" and one["metric"] == "accuracy"
    ]
    means = {one["init"]: f"{100 * one['mean']:.1f}" for one in ours}
    (row,) = [line for line in body.splitlines() if line.startswith("| k-NN accuracy")]
    assert means["pretrained"] in row
    assert means["random"] in row
    assert "one seed: no interval" in row
    measured = front["model-index"][0]["results"]
    values = {metric["value"] for one in measured for metric in one["metrics"]}
    assert round(next(o["mean"] for o in ours if o["init"] == "pretrained"), 4) in values
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["dataset"]["fingerprint"][:16] in body
    assert ledger["device"] in body
    assert "48 training images of `shapes`" in body
    assert "6 steps, 48 images" in body
    assert 'timm.create_model("hf-hub:ann/leaves", pretrained=True)' in body
    assert "mask_ratio = 0.5" in body


def test_the_lines_of_a_card_load_the_model(run, tmp_path):
    push(run, None, tmp_path / "hub")
    _, body = card_of(tmp_path / "hub")
    code = body.split("```python\n")[1].split("```")[0]
    given = {"image": Image.new("RGB", (20, 20), "white")}
    exec(code, given)  # the very lines that a user would paste
    assert given["tokens"].shape == (1, 17, 16)


def test_intervals_stand_in_the_card_where_there_are_seeds(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    knn = [one for one in results["results"] if one["evaluator"] == "knn"]
    for seed in (1, 2):
        for one in knn:
            value = one["value"] + 0.01 * seed * (one["init"] == "pretrained")
            results["results"].append({**one, "seed": seed, "value": value, "image_scores": None})
    (run / "results.json").write_text(json.dumps(results))
    push(run, None, tmp_path / "hub")
    _, body = card_of(tmp_path / "hub")
    (row,) = [line for line in body.splitlines() if line.startswith("| k-NN accuracy")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert re.fullmatch(r".+: 95.% interval \S+ to \S+, n = 3 seeds", cells[5])
    assert cells[4].endswith(" points")


def test_a_card_names_no_folder_of_the_machine(run, tmp_path):
    recipe = (run / "recipe.toml").read_text()
    recipe = recipe.replace(
        'name = "shapes"\nlayout', 'name = "/home/ann/leaves"\npath = "/home/ann"\nlayout'
    )
    assert "/home/ann/leaves" in recipe
    (run / "recipe.toml").write_text(recipe)
    ledger = json.loads((run / "ledger.json").read_text())
    ledger["dataset"]["name"] = "/home/ann/leaves"
    ledger["command"] = "mimkit run /home/ann/recipe.toml"
    (run / "ledger.json").write_text(json.dumps(ledger))
    push(run, "ann/leaves", tmp_path / "hub")
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "/home" not in text
    assert "`leaves`" in text


def test_a_card_says_that_evaluations_are_missing(run, tmp_path):
    told = "not every evaluation of the recipe: this is a part"
    push(run, None, tmp_path / "whole")
    assert told not in card_of(tmp_path / "whole")[1]
    ledger = json.loads((run / "ledger.json").read_text())
    ledger["seconds"]["evaluating"] = ledger["seconds"].pop("evaluate")
    (run / "ledger.json").write_text(json.dumps(ledger))
    push(run, None, tmp_path / "hub")
    assert told in card_of(tmp_path / "hub")[1]


@pytest.mark.parametrize("name", ["ylecun/mnist", "shapes"])
def test_data_of_the_hub_are_named_in_full(name):
    assert public(name) == name


def test_what_was_judged_later_on_other_data_has_a_table_of_its_own(run, tmp_path):
    later = run / "judgements" / "0-camvid"
    later.mkdir(parents=True)
    for name in ("recipe.toml", "results.json", "ledger.json"):
        text = (run / name).read_text()
        (later / name).write_text(text.replace('name = "shapes"', 'name = "camvid"'))
    push(run, None, tmp_path / "hub")
    front, body = card_of(tmp_path / "hub")
    assert "### On camvid" in body
    names = {one["dataset"]["name"] for one in front["model-index"][0]["results"]}
    assert names == {"shapes", "camvid"}


def test_imported_weights_are_not_said_to_be_trained_here(run, tmp_path):
    ledger = json.loads((run / "ledger.json").read_text())
    (run / "ledger.json").write_text(json.dumps({**ledger, "steps": 0, "images_seen": 0}))
    (run / "results.json").unlink()
    push(run, None, tmp_path / "hub")
    front, body = card_of(tmp_path / "hub")
    assert "whose weights come from elsewhere" in body
    assert "It was not judged." in body
    assert "model-index" not in front


def test_the_front_matter_is_what_the_hubs_own_reader_takes(run):
    subject = Subject(16, VIEW, 3)
    text = model_card(RunFolder(run), subject, "hf-hub:ann/leaves", "mit")
    front = yaml.safe_load(text.split("---\n")[1])
    read = ModelCardData(**front)
    assert read.eval_results
    assert read.model_name == "ann/leaves"


# --------------------------------------------------------------------------------------- the Hub


class Hub:
    """Stands in for the client of the Hub: keeps what it is given, where ``held`` are the files."""

    def __init__(self, held=None):
        self.held, self.made, self.files = held, None, {}

    def create_repo(self, repo_id, *, private=None):
        self.made = (repo_id, private)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
        self.files = {name: (Path(folder_path) / name).read_bytes() for name in allow_patterns}
        return SimpleNamespace(repo_url=f"https://huggingface.co/{repo_id}")


def test_the_folder_is_uploaded_in_one_commit(run, monkeypatch, tmp_path):
    hub = Hub()
    monkeypatch.setattr(pushing, "HfApi", lambda: hub)
    said = push(run, "ann/leaves", private=True)
    assert hub.made == ("ann/leaves", True)
    assert "uploaded https://huggingface.co/ann/leaves" in said
    there = tmp_path / "downloaded"
    there.mkdir()
    for name, content in hub.files.items():
        (there / name).write_bytes(content)
    model = timm.create_model(f"local-dir:{there}", pretrained=True).eval()
    image = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        own = load_encoder(run).features(image).patches.mean(1)
        torch.testing.assert_close(model(image), own, atol=1e-5, rtol=1e-5)


@pytest.fixture
def server(monkeypatch):
    """A Hub that answers over HTTP, so that the real client meets real refusals."""
    answers = {}

    class Answering(BaseHTTPRequestHandler):
        def _answer(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            code, body = next(
                (answer for part, answer in answers.items() if part in self.path), (404, {})
            )
            content = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815 -- names of the base class

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answering) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{listening.server_port}"
        )
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield answers
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, "does not know who you are .401.. Log in with hf auth login"),
        (403, "may not write there .403.. Make one that may"),
        (500, "the Hub refused it"),
    ],
)
def test_a_refusal_is_one_message_and_the_folder_is_kept(run, server, code, message, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server["/api/repos/create"] = (code, {"error": "no"})
    done = CliRunner().invoke(app, ["push", str(run), "--to", "ann/leaves"])
    assert done.exit_code == 2
    told = " ".join(done.stderr.split())
    assert "Traceback" not in told
    assert f"{run / 'hub'} is kept" in told
    with pytest.raises(DataError, match=message):
        push(run, "ann/leaves")
    timm.create_model(f"local-dir:{run / 'hub'}", pretrained=True)


def test_a_name_that_is_taken_is_not_written_over(run, server):
    server["/api/repos/create"] = (409, {"error": "You already created this model repo"})
    held = {"type": "file", "path": "theirs.bin", "size": 1, "oid": "0" * 40}
    server["/api/models/ann/leaves/tree"] = (200, [held])
    with pytest.raises(DataError, match="exists on the Hub already, and nothing was changed"):
        push(run, "ann/leaves")
    assert (run / "hub" / "model.safetensors").is_file()


def test_without_a_network_the_folder_is_kept(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(DataError, match=r"the Hub cannot be reached .*hub is kept"):
        push(run, "ann/leaves")
    assert (run / "hub" / "README.md").is_file()


def test_an_upload_that_was_broken_off_goes_on(run, monkeypatch):
    class Broken(Hub):
        def upload_folder(self, **options):
            raise ConnectionError("cut off")

    monkeypatch.setattr(pushing, "HfApi", Broken)
    with pytest.raises(DataError, match="cut off"):
        push(run, "ann/leaves")

    class Empty(Hub):
        def create_repo(self, repo_id, *, private=None):
            taken = pushing.HfHubHTTPError.__new__(pushing.HfHubHTTPError)
            taken.response = SimpleNamespace(status_code=409)
            raise taken

        def list_repo_files(self, repo_id):
            return [".gitattributes"]

    hub = Empty()
    monkeypatch.setattr(pushing, "HfApi", lambda: hub)
    assert "uploaded" in push(run, "ann/leaves")
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
