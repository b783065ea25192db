"""What is run on a machine with a GPU, as far as it can be seen without one."""

import importlib
import json
import os
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import torch
from on_gpu import wheels
from on_gpu.__main__ import follow, main
from on_gpu.needs import needs
from on_gpu.plan import GPU, MINIATURE, PLAN, TOTAL_SECONDS, Stage, chosen
from on_gpu.recipes import ROOT, at_224, evaluations
from on_gpu.record import Record, Row
from on_gpu.stages import labels, suite, where
from on_gpu.stages.evaluators import DATA
from on_gpu.stages.install import lay_over, unmet
from on_gpu.stages.steps import sustained_peak
from on_gpu.work import Figure, Work, read_figures
from packaging.requirements import Requirement

from mimkit.recipe import registry
from mimkit.recipe.schema import load

TELL = """
import json, sys
def tell(name, value):
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"name": name, "value": value, "unit": "s"}) + "\\n")
"""
HANGS = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
tell("child", child.pid)
time.sleep(600)
"""
FAILS = """
tell("before", 1)
raise SystemExit("as it was meant to")
"""
SEES_ITSELF_WRITTEN = """
import pathlib, time
tell("speed", 12345.6)
end = time.monotonic() + 20
while '"speed"' not in pathlib.Path(sys.argv[2], "results.json").read_text():
    assert time.monotonic() < end
    time.sleep(0.05)
"""


def is_alive(process):
    """A killed process whose parent died before it may still be there as a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def run(out, tmp_path, *scripts, total_seconds=300.0):
    """Follows a plan of stages, each a script and its limit in seconds."""
    plan = [Stage(script, script, limit) for script, limit in scripts]
    record = Record(out, "a machine")
    follow(
        plan,
        record,
        tmp_path,
        command=lambda stage, file: [
            *(sys.executable, "-c", TELL + stage.module),
            *(str(file), str(out)),
        ],
        environment=dict(os.environ),
        patience=1,
        total_seconds=total_seconds,
    )
    return record


def test_what_hangs_or_fails_leaves_the_others_running(out, tmp_path):
    record = run(out, tmp_path, (HANGS, 3), (FAILS, 60), (SEES_ITSELF_WRITTEN, 60))
    outcomes = [row.outcome for row in record.rows]
    assert outcomes == ["stopped at its limit", "failed", "done"]
    assert 3 <= record.rows[0].seconds < 30
    (child,) = record.rows[0].figures
    end = time.monotonic() + 20
    while is_alive(child.value):
        assert time.monotonic() < end, "what a stage had started outlived it"
        time.sleep(0.05)
    assert record.rows[1].figures == [Figure("before", 1, "s")]
    assert "as it was meant to" in (out / "log.txt").read_text()


def test_a_figure_is_written_while_its_stage_still_runs(out, tmp_path):
    record = run(out, tmp_path, (SEES_ITSELF_WRITTEN, 60))
    assert record.rows[0].outcome == "done"  # it waits for that itself


def test_a_stage_without_time_is_not_begun(out, tmp_path):
    record = run(out, tmp_path, ("tell('never', 1)", 60), total_seconds=5)
    assert (record.rows[0].outcome, record.rows[0].figures) == ("no time left", [])
    assert "no time left" in (out / "results.md").read_text()


def test_the_table_holds_what_the_json_holds(out):
    figures = [Figure("a|b", 1234567.8, "images/s"), Figure("half", 0.5), Figure("n", 1e-9)]
    rows = [Row("first", "done", 12.3, figures), Row("second")]
    record = Record(out, "a machine", rows)
    record.write()
    assert sorted(file.name for file in out.iterdir()) == ["results.json", "results.md"]
    held = json.loads((out / "results.json").read_text())
    told = [Figure(**each) for each in held["stages"][0]["figures"]]
    assert told == figures
    assert (out / "results.md").read_text().splitlines() == [
        "# a machine",
        "",
        "| stage | figure | value |",
        "|---|---|---:|",
        "| **first** | done | 12 s |",
        "| | a\\|b | 1,234,568 images/s |",
        "| | half | 0.5 |",
        "| | n | 1e-09 |",
        "| **second** | running | 0 s |",
    ]


def test_a_figure_that_was_cut_off_is_left_out(tmp_path):
    file = tmp_path / "figures"
    file.write_text('{"name": "whole", "value": 1, "unit": ""}\n{"name": "ha')
    assert read_figures(file) == [Figure("whole", 1)]


def test_everything_ends_within_nine_minutes():
    assert TOTAL_SECONDS <= 9 * 60
    assert all(stage.limit_seconds < TOTAL_SECONDS for stage in PLAN)
    assert len({stage.name for stage in PLAN}) == len(PLAN)


@pytest.mark.parametrize("stage", PLAN, ids=lambda stage: stage.name)
def test_every_stage_can_be_run(stage):
    assert callable(importlib.import_module(f"on_gpu.stages.{stage.module}").run)


def test_stages_are_chosen_by_words_in_their_names(tmp_path, monkeypatch, capsys):
    names = [stage.name for stage in chosen(["cae", "loader"])]
    assert names == ["install", "prepare", "cae", "cae-where-it-goes", "loader"]
    assert chosen([]) == list(PLAN)
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--out", str(tmp_path), "--only", "celfie"])
    assert main() == 2
    assert "selfie-labels" in capsys.readouterr().out


@pytest.fixture(params=["cuda", "cpu"])
def work(request, tmp_path):
    return Work(request.param, tmp_path, tmp_path, tmp_path / "figures")


@pytest.mark.parametrize(
    "stage", [s for s in PLAN if s.module in ("steps", "where")], ids=lambda stage: stage.name
)
def test_the_settings_at_224_are_those_of_the_recipes(stage, work):
    recipe, *changes = stage.arguments
    held = load(recipe, preset=work.sizes.preset, overrides=[*at_224(work, recipe), *changes])
    assert held.train.batch_size == work.sizes.batch_size
    if work.device == "cuda":  # the published size
        assert (held.encoder.options["embed_dim"], held.encoder.options["depth"]) == (768, 12)


def test_the_settings_of_the_small_runs_are_those_of_the_recipes(work):
    sizes = work.sizes
    load("selfie_cifar", overrides=[*sizes.selfie, "evaluate=[]"])
    load("mae_cifar", overrides=[*sizes.small, DATA, evaluations(sizes.evaluations)])
    load("selfie_cifar", overrides=[*sizes.labels, labels.setting(sizes.finetune)])


@pytest.mark.parametrize("sizes", [GPU, MINIATURE], ids=["gpu", "miniature"])
def test_every_evaluator_is_run(sizes):
    assert set(sizes.evaluations) == {
        entry.name for entry in registry.entries("evaluators") if entry.distribution == "mimkit"
    }


def test_every_file_with_a_test_for_a_gpu_is_found():
    named = {file.name for file in suite.files()}
    assert {"test_batches.py", "test_target.py"} <= named
    assert Path(__file__).name not in named


# --------------------------------------------------------------------------------- what is brought


def make_wheel(folder, name, *requires):
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        lines += [f"Requires-Dist: {each}" for each in requires]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n\n")


def test_what_is_needed_and_not_there_is_brought_level_by_level(tmp_path, monkeypatch):
    index = {
        "alpha": ["torch>=2", "beta>=2; python_version >= '3.12'", "old; python_version < '3.12'"],
        "beta": ["gamma", "delta; extra == 'more'", "alpha"],
        "gamma": [],
        "dall-e": ["a-test-tool"],
    }
    asked = []

    def download(folder, wanted):
        asked.append(sorted(wanted))
        for each in wanted:
            name = Requirement(each).name
            make_wheel(folder, name.replace("-", "_"), *index[name])

    monkeypatch.setattr(wheels, "_download", download)
    make_wheel(tmp_path, "mimkit", "torch>=2.6", "alpha>=1", "alpha<3", "DALL-E==0.1")
    make_wheel(tmp_path, "mimkit_plugin", "mimkit>=0.1")
    wheels.bring(tmp_path, sorted(tmp_path.glob("*.whl")))
    assert asked == [["alpha>=1,<3", "dall-e==0.1"], ["beta>=2"], ["gamma"]]


def test_a_machine_that_is_too_old_is_told_before_the_day(tmp_path):
    make_wheel(tmp_path, "mimkit", "torch>=99")
    with pytest.raises(SystemExit, match=r"mimkit-1.0.*torch>=99.*torch==2"):
        wheels.bring(tmp_path, sorted(tmp_path.glob("*.whl")))


def test_the_machine_meets_what_we_promise_to_run_with():
    there = wheels.machine()
    for name in ("mimkit", "mimkit-beit", "mimkit-cae", "mimkit-mae", "mimkit-selfie"):
        for need in needs(name, metadata.requires(name), {}):
            known = there.get(need.name, Requirement(need.name))
            for version in known.specifier:
                assert need.specifier.contains(version.version), need


def test_requirements_that_are_not_met_are_named():
    assert unmet(["mimkit"]) == []
    assert unmet(["no-such-thing"]) == ["no-such-thing, which is not there"]
    assert unmet(["torch>=9999"]) == [f"torch>=9999, as it is {metadata.version('torch')}"]


def test_what_was_mended_after_the_wheels_were_made_counts(tmp_path):
    files = {
        "mimkit/a.py": "new",
        "mimkit/same.py": "same",
        "recipes/r.toml": "new",
        "plugins/mimkit-x/mimkit_x/__init__.py": "new",
        "site/mimkit/a.py": "old",
        "site/mimkit/same.py": "same",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    site = tmp_path / "site"
    assert lay_over(tmp_path, site) == 3
    assert lay_over(tmp_path, site) == 0
    for name in ("mimkit/a.py", "mimkit/recipes/r.toml", "mimkit_x/__init__.py"):
        assert (site / name).read_text() == "new"


def test_without_wheels_it_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    words = ["on_gpu", "--out", str(tmp_path / "out"), "--bundle", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 2
    assert "make gpu-wheels" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ what is told


def test_the_sustained_peak_is_a_rate():
    assert sustained_peak(torch.device("cpu"), 0.05) > 1e8


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        (
            "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>",
            "matrix products",
        ),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128>>",
            "attention",
        ),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7", "attention"),
        ("sm80_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "convolutions"),
        ("triton_per_fused_native_layer_norm_3", "compiled"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("void at::native::vectorized_elementwise_kernel<4, AUnaryFunctor>", "others"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel, kind):
    assert where.kind_of(kernel) == kind


def test_the_project_is_found_from_its_tests():
    assert (ROOT / "pyproject.toml").is_file()
