"""A plan alone: measured within seconds, with nothing trained, downloaded or written."""

import io
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mimkit.console import make_console
from mimkit.errors import RecipeError
from mimkit.folder import RunFolder
from mimkit.launch.local import LocalLauncher
from mimkit.parts.target import Preparation
from mimkit.pipeline.assemble import assemble
from mimkit.recipe.schema import load
from mimkit.study.conduct import outline
from mimkit.study.gauge import Rehearsed
from mimkit.study.measuring import measure
from mimkit.study.outlook import table
from mimkit.study.plan import make_plan
from mimkit.study.question import Asked, Question
from mimkit.study.records import Budget
from mimkit.train.distributed import World
from mimkit.train.glance import fewest, glance
from mimkit.train.loop import Hooks
from mimkit.train.stopwatch import Stopwatch

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SMALL = [
    *(
        f"{method}_{data}"
        for method in ("selfie", "mae", "beit", "cae")
        for data in ("shapes", "objects")
    ),
    *(f"{method}_cifar" for method in ("simmim", "maskfeat")),
]


def asking(methods, **changes):
    values = {
        "methods": tuple(methods),
        "recipes": Asked(None),
        "budget": Budget("images", 640),
        "seeds": 2,
        "evaluate": ("knn",),
        "device": "cpu",
        "jobs": 1,
        "command": "mimkit compare",
    }
    return Question(**{**values, **changes})


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def inline():
    """Measures in this process."""
    with ThreadPoolExecutor(1) as pool:
        yield Rehearsed(pool, "cpu", 1)


def test_a_dry_run_writes_nothing_and_trains_no_tokenizer(tmp_path):
    words = ["compare", "mae", "beit", "--dataset", "shapes", "--budget", "images=640"]
    words += ["--set", "data.num_images=200", "--set", "data.num_test_images=50", "--dry-run"]
    environment = {**os.environ, "MIMKIT_CACHE": str(tmp_path / "cache"), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "mimkit", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TRAINED" not in done.stdout
    assert "mean absolute error" not in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert rows["prepare"].count("~") == 1  # BEiT's tokenizer
    assert "pre-train" in rows
    assert everything(tmp_path) == ["cache"] or not everything(tmp_path)


def test_the_plan_is_that_of_the_comparison_but_for_its_times(tiny, tmp_path, inline):
    folder = tmp_path / "out"
    said = Console(quiet=True)
    plan = make_plan(asking([str(tiny)]), folder, said, inline, keep=False)
    assert not folder.exists()
    (method,) = plan.methods
    assert (method.total_steps, method.batch_size) == (80, 8)
    assert method.evaluate_seconds > 0
    assert method.trial.seconds_per_step > 0
    assert method.trial.flops_per_image == _counted(tiny)
    assert method.trial.owed == {}


def _counted(tiny):
    """FLOPs of one image, from a step of eight."""
    recipe = load(str(tiny))
    found = measure(recipe, "cpu", make_console(quiet=True))
    return found["trial"]["flops_per_image"]


def test_what_a_run_would_refuse_is_refused(tiny, tmp_path, inline):
    few = Asked(None, overrides=("data.num_images=8",))
    with pytest.raises(RecipeError, match="compare, method 'tiny': no class has two labelled"):
        make_plan(
            asking([str(tiny)], recipes=few, evaluate=("linear_probe",)),
            tmp_path / "out",
            Console(quiet=True),
            inline,
            keep=False,
        )


def test_what_a_plugin_raises_becomes_one_message(tiny, tmp_path):
    class Broken:
        def submit(self, *_):
            future = Future()
            future.set_exception(ZeroDivisionError("division by zero"))
            return future

    with pytest.raises(RecipeError, match=r"method 'tiny': its trial failed: .*division by zero"):
        make_plan(
            asking([str(tiny)]),
            tmp_path / "out",
            Console(quiet=True),
            Rehearsed(Broken(), "cpu", 1),
            keep=False,
        )


@pytest.mark.parametrize("name", SMALL)
def test_every_small_recipe_is_measured_without_being_prepared(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    preset = None if name.endswith(("shapes", "objects")) else "demo"
    data = ["data.num_images=64", "data.num_test_images=32", "evaluate=[]"]
    recipe = load(str(ROOT / "recipes" / f"{name}.toml"), preset=preset, overrides=data)
    found = measure(recipe, "cpu", make_console(quiet=True), rehearsed=True)
    trial = found["trial"]
    assert trial["seconds_per_step"] > 0
    assert trial["flops_per_image"] > 0
    assert bool(trial["owed"]) == name.startswith(("beit", "cae"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_what_takes_the_same_for_any_batch_is_told_from_what_does_not(tiny, tmp_path, monkeypatch):
    """With a clock of which every image takes a second, and the optimizer ten."""
    recipe = load(str(tiny), overrides=["train.batch_size=16"])
    world = World(0, 1, CPU)
    current = assemble(recipe, RunFolder(tmp_path), world, make_console(quiet=True))
    now = [0.0]
    watch = Stopwatch(torch.device("cpu"))
    loop = current.loop(Hooks(phase=watch.phase))
    gradients, update = loop.gradients, loop._update

    def slow_gradients(step, batch, **options):
        now[0] += len(batch.index)
        return gradients(step, batch, **options)

    def slow_update(output):
        with watch.phase("optimizer"):
            now[0] += 10
        return update(output)

    monkeypatch.setattr("mimkit.train.glance.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(loop, "gradients", slow_gradients)
    monkeypatch.setattr(loop, "_update", slow_update)
    found = glance(loop, watch, current.batches(batch_size=4)[0], load_seconds=0.25)
    assert found.step_seconds == pytest.approx(10 + 16)
    assert found.load_seconds == pytest.approx(16 * 0.25)


def test_batch_norm_gets_two_images():
    assert fewest(torch.nn.Linear(2, 2), 8) == 1
    assert fewest(torch.nn.BatchNorm1d(2), 8) == 2
    assert fewest(torch.nn.BatchNorm1d(2), 1) == 1


def test_what_methods_share_is_paid_once(tiny, tmp_path, inline):
    plan = make_plan(asking([str(tiny)]), tmp_path / "out", Console(quiet=True), inline, keep=False)
    (method,) = plan.methods

    def owing(label, **owed):
        return replace(method, label=label, trial=replace(method.trial, owed=owed))

    def caption(*methods) -> str:
        quick = [replace(m, total_steps=0, evaluate_seconds=0.0) for m in methods]
        return table(replace(plan, methods=tuple(quick)), 1).caption

    assert caption(owing("a", x=600.0), owing("b", x=600.0)).split()[:2] == ["about", "10"]
    assert caption(owing("a", x=600.0), owing("b", y=600.0)).split()[:2] == ["about", "20"]


def test_what_is_finished_is_not_counted_again(tiny, tmp_path, inline):
    plan = make_plan(asking([str(tiny)]), tmp_path / "out", Console(quiet=True), inline, keep=False)
    (method,) = plan.methods
    plan = replace(plan, methods=(replace(method, evaluate_seconds=3600.0, total_steps=0),))
    assert table(plan, 1).caption.startswith("about 2\u202fh 00")
    half = table(plan, 1, plan.cells[:1]).caption
    assert half.startswith("about 60\u202fmin")
    assert half.endswith("1 of 2 runs are finished already")


def test_a_target_is_prepared_where_its_author_says_nothing_else(tiny, tmp_path, register):
    from mimkit.builtin.targets import Pixels  # noqa: PLC0415 -- a base class

    class Slow(Pixels):
        def prepare(self, images, workdir, *, device, say):
            return Preparation("slow", 5.0, cached=False)

    target = Slow.__new__(Slow)
    done = target.rehearse(None, tmp_path, device=CPU)
    assert done == Preparation("slow", 5.0, cached=False)


def test_the_outline_shows_the_plan(tiny, tmp_path, monkeypatch, inline):
    from contextlib import contextmanager  # noqa: PLC0415

    @contextmanager
    def here(*_):
        yield inline

    monkeypatch.setattr("mimkit.study.conduct.rehearsing", here)
    said = Console(record=True, width=120, file=io.StringIO())
    plan = outline(asking([str(tiny)]), tmp_path / "out", LocalLauncher(), console=said)
    assert [m.label for m in plan.methods] == ["tiny"]
    assert "2 runs on shapes" in said.export_text()
