"""Plans for GPUs that are not here."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
from rich.console import Console
from test_dry_run import asking

from mimkit.console import make_console
from mimkit.errors import RecipeError
from mimkit.recipe.schema import load
from mimkit.study.conduct import foretell
from mimkit.study.counting import count
from mimkit.study.forecast import Foreseen, foresee
from mimkit.study.gpus import GPUS, fleet_of, parse_fleet


@pytest.fixture
def counted(tiny):
    return count(load(str(tiny)), make_console(quiet=True), flops_per_second=1e12)


@pytest.fixture
def inline(monkeypatch):
    @contextmanager
    def here(fleet, jobs):
        with ThreadPoolExecutor(1) as pool:
            yield Foreseen(pool, fleet)

    monkeypatch.setattr("mimkit.study.forecast.foreseeing", here)


def test_a_fleet_is_machines_times_gpus():
    fleet = parse_fleet("4x8 H100")
    assert (fleet.nodes, fleet.per_node, fleet.size, fleet.network) == (4, 8, 32, 3200)
    assert parse_fleet("3 l4").size == 3
    assert parse_fleet("2 x 4 a100 50 gbit").network == 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8x8 h10", "Did you mean 'h100'"),
        ("h100", "such as '8x8 h100'"),
        ("8x8", "such as '8x8 h100'"),
        ("0x8 h100", "must be 1 to"),
        ("2x8 h100 0gbit", "above 0 Gbit"),
    ],
)
def test_what_is_no_fleet_is_refused_with_an_example(text, said):
    with pytest.raises(RecipeError, match=said):
        parse_fleet(text)


def test_an_estimate_is_no_run():
    with pytest.raises(RecipeError, match="goes with --dry-run"):
        fleet_of("8x8 h100", dry_run=False)
    assert fleet_of(None, dry_run=False) is None


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_every_kind_of_gpu_computes_more_than_it_reads(gpu):
    # Units: a figure with sparsity, in bits or for both directions would break these.
    assert 50 < gpu.tflops * 1e12 / (gpu.bandwidth * 1e9) < 500
    assert gpu.link < gpu.bandwidth
    assert gpu.source


def test_what_is_counted_does_not_depend_on_the_machine(tiny, counted):
    again = count(load(str(tiny)), make_console(quiet=True), flops_per_second=1e12)
    same = replace(again.footprint, load_seconds=counted.footprint.load_seconds)
    assert same == counted.footprint
    assert counted.footprint.trained == counted.parameters["trainable"]


def test_a_batch_that_cannot_be_shared_out_is_refused_with_the_number_that_can(tiny, counted):
    with pytest.raises(RecipeError, match="at most 8 of them have work"):
        foresee(counted, load(str(tiny)), parse_fleet("2x8 h100"), "tiny")


def test_the_recipes_own_way_is_reckoned_with_where_it_fits(tiny, counted):
    fleet = parse_fleet("8 h100")
    assert foresee(counted, load(str(tiny)), fleet, "tiny").way == "ddp"
    fsdp = load(str(tiny), overrides=["train.parallel=fsdp"])
    assert foresee(counted, fsdp, fleet, "tiny").way == "fsdp"


def test_what_does_not_fit_whole_is_reckoned_with_in_shares(tiny, counted):
    huge = replace(counted.footprint.units[0], all=10**9, trained=10**9)
    large = replace(counted, footprint=replace(counted.footprint, units=(huge,) * 8))
    found = foresee(large, load(str(tiny)), parse_fleet("8 h200"), "tiny")
    assert not found.steps["ddp"].fits
    assert found.way == "fsdp"
    assert found.steps["fsdp"].fits


def test_sgd_is_estimated_for_whole_models_alone(tiny):
    recipe = load(str(tiny), overrides=["train.optimizer=sgd"])
    found = count(recipe, make_console(quiet=True), flops_per_second=1e12)
    assert list(foresee(found, recipe, parse_fleet("2 l4"), "tiny").steps) == ["ddp"]
    assert found.footprint.moments == 1


def test_the_answer_begins_with_what_it_is(tiny, inline):
    said = Console(record=True, width=200, file=io.StringIO())
    plan = foretell(asking([str(tiny)]), parse_fleet("2x2 h100 100gbit"), console=said)
    lines = said.export_text().splitlines()
    assert lines[0].startswith("ESTIMATE for 2 machines of 2 x h100")
    assert "100 Gbit/s from machine to machine" in lines[1]
    rows = {line.split("  ")[1].strip(): line for line in lines if line.startswith("  ")}
    for name in ("bound by", "memory, ddp", "memory, fsdp", "GPU-hours", "pre-train"):
        assert name in rows, rows
    (method,) = plan.methods
    hours = (method.pretrain_seconds + method.evaluate_seconds) * 4 / 3600
    assert f"{hours:,.3g}" in rows["GPU-hours"]


def test_a_forecast_leaves_nothing(tiny, tmp_path, monkeypatch, inline):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    foretell(asking([str(tiny)]), parse_fleet("1 l4"), console=Console(quiet=True))
    assert set(tmp_path.rglob("*")) == before
