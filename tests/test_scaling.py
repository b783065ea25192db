"""Formulas of memory and traffic are held against what is counted here, and by nobody of ours."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import HERE, finish, torchrun
from test_resume_recipes import miniature
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mimkit.console import make_console
from mimkit.study.alive import alive
from mimkit.study.counting import count
from mimkit.study.gpus import GPUS, Fleet, parse_fleet
from mimkit.study.scaling import (
    CONTEXT,
    FULL,
    Footprint,
    Weights,
    ddp_memory,
    ddp_sent,
    fsdp_memory,
    fsdp_sent,
    step,
)

RECIPE = HERE.parent / "recipes" / "mae_shapes.toml"
BASE = Footprint(
    units=(Weights(7_087_872, 7_087_872),) * 12,
    rest=Weights(1_000_000, 1_000_000),
    constants=0,
    buffers=0,
    step_bytes=6 * 86_054_464,
    image_bytes=40 * 2**20,
    input_bytes=602_112,
    flops_per_image=1e11,
    operators=3_000,
    load_seconds=0.002,
    moments=2,
    half=True,
)
"""About a ViT-B."""

fleets = st.builds(
    Fleet,
    nodes=st.integers(1, 128),
    per_node=st.integers(1, 8),
    gpu=st.sampled_from(list(GPUS.values())),
    network=st.floats(1, 3200),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize(("processes", "pieces"), [(2, 1), (2, 2), (4, 1)])
def test_what_a_step_sends_and_holds_is_what_the_formulas_say(tmp_path, way, processes, pieces):
    out = tmp_path / "told.json"
    finish(torchrun(processes, HERE / "traffic.py", out, RECIPE, way, "float32", pieces))
    told = json.loads(out.read_text())
    recipe = miniature(RECIPE, settings=["train.precision=float32"])
    made = count(recipe, make_console(quiet=True), flops_per_second=1e12).footprint
    given_, share = told["given"], (processes - 1) / processes
    if way == "ddp":
        # Gradients are added up once a step, whatever the pieces; a ring sends them twice.
        assert given_["allreduce_"] == FULL * made.trained
        counted = share * (2 * given_["allreduce_"] + given_["broadcast_"])
        assert counted == pytest.approx(ddp_sent(made, processes), rel=0.05)
        assert told["held"]["weights"] == FULL * made.all
        assert told["held"]["moments"] == 2 * FULL * made.trained
    else:
        counted = share * (given_["_allgather_base_"] + given_["_reduce_scatter_base_"])
        # Shares are filled up to equal lengths.
        assert counted == pytest.approx(fsdp_sent(made, processes, pieces), rel=0.01)
        for name, tensors in (("weights", 1), ("gradients", 1), ("moments", 2)):
            whole = tensors * FULL * made.trained
            assert told["held"][name] == pytest.approx(whole / processes, rel=0.01)
    # What the system counted on its way: of all processes, with headers and whoever else talks.
    assert told["sent"] >= processes * counted


def test_tensors_that_are_there_at_once_are_those_of_torchs_own_profiler():
    network = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64))
    images = torch.randn(32, 64)

    def passes():
        torch.autograd.backward(network(images).square().mean())

    passes()  # what is made once
    for parameter in network.parameters():
        parameter.grad = None
    found = alive(passes, [*network.parameters(), images]).peak
    for parameter in network.parameters():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        passes()
    held = peak = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert found == peak


def test_a_step_in_half_precision_holds_gradients_and_a_copy_of_the_weights():
    recipe = miniature(RECIPE)
    made = count(recipe, make_console(quiet=True), flops_per_second=1e12).footprint
    assert made.step_bytes == pytest.approx((FULL + 2) * made.trained, rel=0.15)
    whole = miniature(RECIPE, settings=["train.precision=float32"])
    made = count(whole, make_console(quiet=True), flops_per_second=1e12).footprint
    assert made.step_bytes == pytest.approx(FULL * made.trained, rel=0.15)


@given(st.integers(1, 1024), st.integers(1, 64))
def test_one_process_sends_nothing_and_no_ring_more_than_twice_the_gradients(n, pieces):
    assert ddp_sent(BASE, 1) == fsdp_sent(BASE, 1, pieces) == 0
    assert ddp_sent(BASE, n) < 2 * FULL * BASE.trained
    # As the paper of ZeRO has it: half as much again at equal precision, for one piece.
    same = replace(BASE, half=False)
    assert fsdp_sent(same, n, 1) <= 1.5 * ddp_sent(same, n) + 1e-6
    assert fsdp_sent(BASE, n, pieces) == pytest.approx(pieces * fsdp_sent(BASE, n, 1))


@given(st.integers(1, 1023), st.integers(1, 512))
def test_more_processes_never_hold_more(n, piece):
    assert fsdp_memory(BASE, n + 1, piece) <= fsdp_memory(BASE, n, piece)
    assert ddp_memory(BASE, n + 1, piece) >= ddp_memory(BASE, n, piece)
    assert ddp_memory(BASE, n, piece) > ddp_memory(BASE, n, piece - 1)


@given(fleets, st.integers(1, 512), st.sampled_from(["ddp", "fsdp"]))
def test_a_step_takes_as_long_as_what_bounds_it(fleet, share, way):
    found = step(BASE, way, fleet, share, None)
    assert found.seconds == getattr(found, found.bound)
    assert found.seconds >= max(found.compute, found.network, found.reading, found.launch)
    assert share % found.pieces == 0
    if found.pieces > 1:
        coarser = [k for k in range(1, found.pieces) if share % k == 0]
        assert not any(step(BASE, way, fleet, share, k).fits for k in coarser)


def test_adam_alone_is_sixteen_bytes_a_weight():
    """As counted in the paper of ZeRO (arXiv 1910.02054, 3.1), here in float32 throughout."""
    bare = replace(BASE, step_bytes=FULL * BASE.trained, image_bytes=0)
    assert ddp_memory(bare, 1, 1) == 16 * BASE.all
    assert fsdp_memory(bare, 10**9, 1) < 0.2 * 16 * BASE.all


def test_a_slower_network_bounds_what_a_faster_did_not():
    fast = step(BASE, "ddp", parse_fleet("8x8 h100"), 64, None)
    slow = step(BASE, "ddp", parse_fleet("8x8 h100 1gbit"), 64, None)
    assert (fast.bound, slow.bound) == ("compute", "network")
    assert slow.network == pytest.approx(3200 * fast.network)
    assert fast.memory == slow.memory > CONTEXT
