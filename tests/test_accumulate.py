"""In how many pieces a step runs: what fits is found before the run, and kept."""

import contextlib
import itertools
import json
import math
import signal

import pytest
import torch
from pretraining import assert_same_weights, here, ledger
from rich.console import Console

from mimkit.errors import TrainingError
from mimkit.evaluate.heldout import HeldOut
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.run import pretrain, run
from mimkit.recipe.schema import load
from mimkit.train import trial as trials
from mimkit.train.distributed import World
from mimkit.train.loop import Loop
from mimkit.train.pieces import largest_piece, more_pieces
from mimkit.train.signals import Interrupted
from mimkit.train.step import Pretrainer

FULL = "CUDA out of memory. Tried to allocate 20.00 GiB"


# ----------------------------------------------------------------------------- the search alone


def simulated(base, each, room, tried):
    """A device on which a step needs so much in all, given out in blocks of 2 MiB."""

    def peak(size):
        tried.append(size)
        used = base + 2**21 * math.ceil(each * size / 2**21)
        if used > room / 0.9:
            raise torch.OutOfMemoryError(FULL)
        return used

    return peak


@pytest.mark.parametrize("base", [0, 2**30, 30 * 2**30])
def test_the_largest_piece_that_fits_is_found(base):
    room = 70 * 2**30
    shares = (1, 2, 6, 7, 64, 96, 127, 250, 500, 512, 1000, 2048, 4096)
    for share, each in itertools.product(shares, (2e5, 3e6, 68e6, 2e9)):
        tried = []
        found = largest_piece(simulated(base, each, room, tried), share, room)
        needs = {n: base + 2**21 * math.ceil(each * n / 2**21) for n in range(1, share + 1)}
        fits = [n for n in needs if share % n == 0 and needs[n] <= room]
        assert found == max(fits, default=None), (share, each)
        assert found is None or any(found <= n and needs[n] <= room for n in tried), (share, each)


@pytest.mark.parametrize(("room", "expected"), [(60, 512), (8, 64), (0.9, 8), (0.05, None)])
def test_what_cannot_fit_is_hardly_ever_tried(room, expected):
    room, tried = int(room * 1e9), []
    assert largest_piece(simulated(2 * 10**8, 68e6, room, tried), 2048, room) == expected
    assert tried[0] == 8
    assert max(tried) <= 2 * (expected or 4)
    assert sum(tried) <= 2 * max(tried)


def test_memory_that_grows_faster_than_it_seems_is_found_out_by_the_step():
    tried = []

    def peak(size):
        tried.append(size)
        used = 10 * size + (1000 if size > 100 else 0)
        if used > 2000:
            raise torch.OutOfMemoryError(FULL)
        return used

    assert largest_piece(peak, 192, 1990) == 96
    assert 192 in tried


def test_an_error_of_another_kind_is_not_taken_for_full_memory():
    def peak(size):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        largest_piece(peak, 8, 100)


def test_the_next_number_of_pieces_divides_the_batch():
    assert [more_pieces(12, n) for n in (1, 2, 3, 4, 6, 12)] == [2, 4, 6, 12, 12, None]
    assert more_pieces(7, 1) == 7


# ---------------------------------------------------------------------------- in the trial of a run


@pytest.fixture
def limited(monkeypatch):
    """Lets a piece of more than so many images not fit; lists the sizes of all pieces."""
    forward = Pretrainer.forward

    def limit(most, *, after=0):
        seen = []

        def limited(self, batch):
            seen.append(len(batch.index))
            if len(seen) > after and len(batch.index) > most:
                raise torch.OutOfMemoryError(FULL)
            return forward(self, batch)

        monkeypatch.setattr(Pretrainer, "forward", limited)
        return seen

    return limit


def test_on_the_cpu_a_batch_is_whole_as_long_as_it_can_be_had(tiny, tmp_path, limited):
    seen = limited(8)
    said = here(tiny, tmp_path / "a")
    assert set(seen) == {8}
    assert ledger(tmp_path / "a")["accumulate"] == 1
    assert "accumulate" not in said
    here(tiny, tmp_path / "b", "train.accumulate=1")
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_full_memory_in_the_trial_cuts_the_batch_and_says_so(tiny, tmp_path, limited):
    here(tiny, tmp_path / "given", "train.accumulate=4")
    seen = limited(3)
    said = here(tiny, tmp_path / "found")
    assert seen[:3] == [8, 4, 2]
    assert set(seen[3:]) == {2}
    assert said.count("pieces of 2 images fit into memory: train.accumulate = 4") == 1
    assert ledger(tmp_path / "found")["accumulate"] == 4
    assert_same_weights(tmp_path / "found", tmp_path / "given")


def test_a_number_of_pieces_that_is_too_small_is_told_with_one_that_may_do(tiny, tmp_path, limited):
    limited(3)
    with pytest.raises(TrainingError, match=r"accumulate=2, pieces of 4 .* set train.accumulate=4"):
        here(tiny, tmp_path / "run", "train.accumulate=2")


def test_single_images_that_do_not_fit_are_told(tiny, tmp_path, limited):
    limited(0)
    with pytest.raises(TrainingError, match="nothing left to cut"):
        here(tiny, tmp_path / "run")


def test_on_a_device_that_counts_memory_pieces_grow(tiny, tmp_path, limited, monkeypatch):
    seen = limited(16)
    recipe = load(str(tiny), overrides=["train.batch_size=48", "evaluate=[]"])
    monkeypatch.setattr(trials, "_counts_memory", lambda _: True)
    monkeypatch.setattr(trials, "_room", lambda _: 1000)
    monkeypatch.setattr(trials, "_peak_memory", lambda _: 50 * seen[-1])
    current = open_run(
        recipe, RunFolder(tmp_path), World(0, 1, torch.device("cpu")), Console(quiet=True)
    )
    loop = current.loop()
    before = {name: value.clone() for name, value in current.pretrainer.state_dict().items()}
    current.try_out(loop)
    assert loop.progress.choice.accumulate == 3  # 16 images need 800; 24 would need 1200
    assert max(seen) == 16
    assert seen[0] == 8
    assert current.loop().progress.choice.accumulate == 3  # what is timed later is cut alike
    assert not loop.optimizer.state
    for name, value in current.pretrainer.state_dict().items():
        assert torch.equal(value, before[name]), name


# ------------------------------------------------------------------------------------- going on


def stop_at_6(tiny, folder):
    """Trains until a signal comes in the sixth step."""

    def asked(_, done, request):
        request.number = signal.SIGTERM if done == 6 else None
        return done == 6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "asked_to_stop", asked)
        with pytest.raises(Interrupted):
            here(tiny, folder)


def test_a_run_goes_on_in_as_many_pieces_as_it_began(tiny, tmp_path, limited):
    limited(3)
    here(tiny, tmp_path / "whole")
    stop_at_6(tiny, tmp_path / "parts")
    seen = limited(8)  # now there would be room enough
    here(tiny, tmp_path / "parts")
    assert set(seen) == {2}
    assert ledger(tmp_path / "parts")["accumulate"] == 4
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_elsewhere_the_pieces_are_found_anew(tiny, tmp_path, limited):
    limited(3)
    stop_at_6(tiny, tmp_path / "run")
    (record,) = (tmp_path / "run/checkpoints").glob("step_00000006.json")
    held = json.loads(record.read_text())
    assert held["state"]["choice"]["where"] == "1 x cpu"
    held["state"]["choice"]["where"] = "1 x another device"
    record.write_text(json.dumps(held))
    seen = limited(8)
    here(tiny, tmp_path / "run")
    assert set(seen) == {8}
    assert ledger(tmp_path / "run")["accumulate"] == 1


# ----------------------------------------------------------------------- memory that is full later


@pytest.fixture
def trial(tiny, tmp_path, limited):
    """How many pieces are done in the trial, before the first step of a run."""
    seen = limited(8)
    here(tiny, tmp_path / "counted")
    return len(seen) - 12


RARELY = "train.checkpoint_every_steps=100"


def log_of(folder):
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time/step_ms"} for row in rows]


def test_full_memory_in_a_step_keeps_all_steps_before_it(tiny, tmp_path, limited, trial):
    limited(3, after=trial + 5)
    with pytest.raises(TrainingError) as told:
        here(tiny, tmp_path / "full", RARELY)
    message = str(told.value)
    assert message.startswith("step 5: memory is full with train.accumulate=1, pieces of 8 images")
    assert FULL in message
    assert "set train.accumulate=2" in message
    assert message.endswith("The same command then goes on at step 5.")
    seen = limited(8)
    said = here(tiny, tmp_path / "full", RARELY)
    assert len(seen) - trial == 12 - 5
    assert "going on at step 5" in said
    assert_same_weights(tmp_path / "full", tmp_path / "counted")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "counted")


def test_the_number_that_the_message_names_mends_it(tiny, tmp_path, limited, trial):
    limited(4, after=trial + 5)
    options = {"out": tmp_path, "device": "cpu"}
    with pytest.raises(TrainingError, match=r"set train\.accumulate=2"):
        run(load(str(tiny), overrides=["evaluate=[]", RARELY]), **options)
    seen = limited(4)
    mended = load(str(tiny), overrides=["evaluate=[]", RARELY, "train.accumulate=2"])
    folder = run(mended, **options)
    assert set(seen) == {4}
    assert ledger(folder)["steps"] == 12
    assert load(str(folder / "recipe.toml")).train.accumulate == 2


def test_full_memory_in_an_evaluation_keeps_all_steps_before_it(tiny, tmp_path, monkeypatch):
    settings = [RARELY, 'evaluate=[{part="heldout", every_steps=6}]']
    here(tiny, tmp_path / "whole", *settings)
    judge, calls = HeldOut.run, []

    def full(self, subject):
        calls.append(None)
        if len(calls) == 2:  # at step 0 it fits, at step 6 it does not
            raise torch.OutOfMemoryError(FULL)
        return judge(self, subject)

    monkeypatch.setattr(HeldOut, "run", full)
    with pytest.raises(TrainingError, match="evaluation 'heldout': memory is full"):
        here(tiny, tmp_path / "full", *settings)
    assert "going on at step 6" in here(tiny, tmp_path / "full", *settings)
    assert_same_weights(tmp_path / "full", tmp_path / "whole")
    assert log_of(tmp_path / "full") == log_of(tmp_path / "whole")


# ----------------------------------------------------------------------------------- on a real GPU


@pytest.mark.gpu
def test_on_a_gpu_with_little_room_the_batch_is_cut_and_the_run_goes_on_alike(tiny, tmp_path):
    device = torch.device("cuda", 0)
    sizes = [
        "data.image_size=64",
        "encoder.embed_dim=192",
        "encoder.depth=8",
        "encoder.num_heads=3",
    ]
    settings = ["evaluate=[]", "train.batch_size=512", "data.num_images=512", *sizes]

    def losses(folder, stop=None):
        recipe = load(str(tiny), overrides=settings)
        with RunFolder(folder, writable=True) as opened, pytest.MonkeyPatch.context() as patch:

            def asked(_, done, request):
                request.number = signal.SIGTERM if done == stop else None
                return done == stop

            patch.setattr(Loop, "asked_to_stop", asked)
            current = open_run(recipe, opened, World(0, 1, device), Console(quiet=True))
            with contextlib.suppress(Interrupted):
                pretrain(current)
        return [row["loss/total"] for row in log_of(folder)]

    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / total, device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "_room", lambda _: int(0.9 * 2 * 2**30))
        try:
            whole = losses(tmp_path / "whole")
            losses(tmp_path / "parts", stop=6)
            parts = losses(tmp_path / "parts")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert ledger(tmp_path / "whole")["accumulate"] > 1
    for key in ("accumulate", "compiled"):
        assert ledger(tmp_path / "parts")[key] == ledger(tmp_path / "whole")[key]
    # Sums on a GPU are not in a fixed order: twelve steps in bfloat16 agree to 1 % of the loss.
    assert parts == pytest.approx(whole, rel=1e-2)
