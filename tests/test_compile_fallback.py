"""Compiled steps, and what happens where a compiler fails: the run goes on without it."""

import signal
import subprocess
import sys

import pytest
import torch
from pretraining import LAST, assert_same_weights, here, ledger
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from mimkit.errors import TrainingError
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.recipe.schema import load
from mimkit.train import trial as trials
from mimkit.train.distributed import World
from mimkit.train.loop import Loop
from mimkit.train.signals import Interrupted
from mimkit.train.step import Pretrainer

CPU = torch.device("cpu")
REASON = "backend='inductor' raised: CalledProcessError: no C compiler"


class Compiled(nn.Module):
    """What `torch.compile` gives, without compiling; fails from some call on."""

    def __init__(self, module, works):
        super().__init__()
        self._orig_mod = module
        self.works = works
        self.calls = 0

    def forward(self, batch):
        self.calls += 1
        if self.calls > self.works:
            raise RuntimeError(REASON.replace(": ", ":\n", 1))
        return self._orig_mod(batch)


@pytest.fixture
def compiler(monkeypatch):
    """Lets compiling work for so many pieces; lists all that was compiled."""
    made = []

    def make(works=10**9, *, faster=True):
        def compile_(module):
            made.append(Compiled(module, works))
            return made[-1]

        def time_steps(step, number):
            step()
            return (1.0 if loop_compiled(step) is faster else 2.0), 1

        def loop_compiled(step):
            return step.loop.progress.choice.compiled

        monkeypatch.setattr(torch, "compile", compile_)
        monkeypatch.setattr(trials, "_time_steps", time_steps)
        # As on a GPU: "auto" never compiles on the CPU.
        monkeypatch.setattr(
            trials,
            "_tries_to_compile",
            lambda loop, known: (
                (known.compiled if known else True)
                if loop.train.compile == "auto"
                else loop.train.compile == "on"
            ),
        )
        return made

    return make


@pytest.fixture
def eager(tiny, tmp_path):
    """The folder of a run without any compiler."""
    here(tiny, tmp_path / "eager", "train.compile=off")
    return tmp_path / "eager"


def test_a_step_that_cannot_be_compiled_runs_as_it_is_and_says_so_once(
    tiny, tmp_path, eager, compiler
):
    compiler(works=0)
    said = here(tiny, tmp_path / "run")
    assert said.count("cannot be compiled here, so it runs as it is: RuntimeError: ") == 1
    assert REASON in said
    found = ledger(tmp_path / "run")
    assert found["compiled"] is False
    assert REASON in found["compile_failure"]
    assert_same_weights(tmp_path / "run", eager)


def test_a_recompilation_that_fails_in_training_falls_back_and_loses_no_step(
    tiny, tmp_path, eager, compiler
):
    made = compiler(works=6)  # two in the trial, then four steps
    said = here(tiny, tmp_path / "run")
    assert len(made) == 1
    assert made[0].calls == 7
    assert said.count("cannot be compiled here") == 1
    assert REASON in ledger(tmp_path / "run")["compile_failure"]
    assert_same_weights(tmp_path / "run", eager)


def test_who_insists_on_compiling_is_told_what_to_set(tiny, tmp_path, compiler):
    compiler(works=0)
    with pytest.raises(TrainingError) as told:
        here(tiny, tmp_path / "run", "train.compile=on")
    assert REASON in str(told.value)
    assert 'train.compile is "on". Set train.compile=off' in str(told.value)


def test_who_insists_keeps_the_steps_before_the_failure(tiny, tmp_path, eager, compiler):
    compiler(works=6)
    with pytest.raises(TrainingError, match=r"Set train\.compile=off"):
        here(tiny, tmp_path / "run", "train.compile=on")
    assert "going on at step 4" in here(tiny, tmp_path / "run", "train.compile=off")
    assert_same_weights(tmp_path / "run", eager)


def test_a_fault_of_the_step_itself_is_not_blamed_on_the_compiler(
    tiny, tmp_path, compiler, monkeypatch
):
    compiler()
    forward, calls = Pretrainer.forward, []

    def faulty(self, batch):
        calls.append(None)
        if len(calls) > 6:
            raise ZeroDivisionError("a part's own")
        return forward(self, batch)

    monkeypatch.setattr(Pretrainer, "forward", faulty)
    with pytest.raises(ZeroDivisionError, match="a part's own"):
        here(tiny, tmp_path / "run")
    assert ledger(tmp_path / "run")["compiled"] is True
    assert list((tmp_path / "run/checkpoints").glob("*.json"))


def stop_at_6(tiny, folder):
    """Trains until a signal comes in the sixth step."""

    def asked(_, done, request):
        request.number = signal.SIGTERM if done == 6 else None
        return done == 6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "asked_to_stop", asked)
        with pytest.raises(Interrupted):
            here(tiny, folder)


@pytest.mark.parametrize("faster", [True, False])
def test_a_run_goes_on_compiled_or_not_as_it_began(tiny, tmp_path, compiler, faster):
    compiler(faster=faster)
    stop_at_6(tiny, tmp_path / "run")
    made = compiler(faster=not faster)  # now timing would decide otherwise
    before = len(made)
    here(tiny, tmp_path / "run")
    assert ledger(tmp_path / "run")["compiled"] is faster
    assert len(made) - before == faster  # what is not used is not compiled again


def test_what_was_compiled_and_no_longer_can_be_goes_on_as_it_is(tiny, tmp_path, eager, compiler):
    compiler()
    stop_at_6(tiny, tmp_path / "run")
    compiler(works=0)
    assert REASON in here(tiny, tmp_path / "run")
    assert ledger(tmp_path / "run")["compiled"] is False
    assert_same_weights(tmp_path / "run", eager)


def test_a_failed_compiler_is_not_tried_again(tiny, tmp_path, compiler):
    compiler(works=0)
    stop_at_6(tiny, tmp_path / "run")
    made = compiler()
    before = len(made)
    assert "cannot be compiled" not in here(tiny, tmp_path / "run")
    assert len(made) == before
    assert REASON in ledger(tmp_path / "run")["compile_failure"]


# -------------------------------------------------------------------------- of several processes


@pytest.fixture
def exchanges():
    """Counts the buckets of gradients that were averaged over processes."""
    return []


@pytest.fixture
def one_of_two(monkeypatch, exchanges):
    """One of two processes, of which the other one does nothing."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=2)
    wrap = World.wrap

    def average(_, bucket):
        exchanges.append(bucket.is_last())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def wrapped(world, module):
        whole = wrap(world, module)
        whole.register_comm_hook(None, average)
        return whole

    monkeypatch.setattr(World, "wrap", wrapped)
    # Else the mean would be half of this process's own value.
    monkeypatch.setattr(World, "mean", lambda _, values: values)
    monkeypatch.setattr(World, "share", lambda _, make: make())
    yield World(0, 2, CPU)
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Grad strides do not match:UserWarning")  # of axes of size 1
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_exchanged_once_a_step_however_many_pieces(
    tiny, tmp_path, one_of_two, exchanges, compiled, monkeypatch
):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="eager"))
    recipe = load(str(tiny), overrides=["evaluate=[]", "train.accumulate=4"])
    current = open_run(recipe, RunFolder(tmp_path / "run"), one_of_two, Console(quiet=True))
    loop = current.loop()
    loop.eager = loop.forward = one_of_two.wrap(current.pretrainer)
    if compiled:
        loop.compile()
    (batch,) = current.stream(0, 1)
    assert len(batch.index) == 4  # of 8 images, the share of one of two processes
    for done in (1, 2):
        loop.gradients(0, batch)
        assert exchanges.count(True) == done
    loop.gradients(0, batch, alone=True)
    assert exchanges.count(True) == 2


def test_one_process_that_cannot_compile_keeps_all_from_it(
    tiny, tmp_path, one_of_two, compiler, monkeypatch
):
    compiler()
    monkeypatch.setattr(World, "any", lambda _, flag: True)  # what the other one says
    recipe = load(str(tiny), overrides=["evaluate=[]"])
    current = open_run(recipe, RunFolder(tmp_path / "run"), one_of_two, Console(quiet=True))
    loop = current.loop()
    trial = current.try_out(loop)
    assert not trial.compiled
    assert loop.forward is loop.eager
    assert loop.progress.choice.compile_failure == "it failed in another process"


def test_all_processes_cut_into_as_many_pieces_as_the_one_that_needs_most(
    tiny, tmp_path, one_of_two, monkeypatch
):
    monkeypatch.setattr(World, "largest", lambda _, value: max(value, 4))
    recipe = load(str(tiny), overrides=["evaluate=[]"])
    current = open_run(recipe, RunFolder(tmp_path / "run"), one_of_two, Console(quiet=True))
    loop = current.loop()
    current.try_out(loop)
    assert loop.progress.choice.accumulate == 4


START = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
COMPILED = """
import functools, sys, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from mimkit.cli import main
sys.argv = ["mimkit", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_two_processes_train_compiled_without_inductor_as_one_does_eagerly(tiny, tmp_path):
    settings = ["encoder.drop_path=0.0", "evaluate=[]", "train.accumulate=2"]
    here(tiny, tmp_path / "one", *settings[:1])
    script = tmp_path / "compiled.py"
    script.write_text(COMPILED)
    sets = [word for one in (*settings, "train.compile=on") for word in ("--set", one)]
    done = subprocess.run(
        [*START, script, "run", tiny, "--out", tmp_path / "two", "--device", "cpu", *sets],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "two/tiny/0"
    assert (ledger(folder)["compiled"], ledger(folder)["accumulate"]) == (True, 2)
    a, b = load_file(tmp_path / "one" / LAST), load_file(folder / LAST)
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-4, rtol=1e-3, msg=name)
