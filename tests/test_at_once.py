"""Several trainings at once: the same numbers, and nothing lost with a process."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from mimkit.errors import DataError
from mimkit.evaluate.at_once import Crew, LostError, at_once, room
from mimkit.evaluate.finetune import FineTune
from mimkit.recipe.build import build
from mimkit.recipe.schema import load
from mimkit.train.step import Pretrainer

CPU = torch.device("cpu")
HERE = os.getpid()
WHO = "__import__('os').getpid()"
DIES = f"{WHO} == {HERE} or __import__('os')._exit(3)"
REFUSED = "(_ for _ in ()).throw(__import__('mimkit.errors').errors.DataError('x.png: unreadable'))"
FULL = (
    f"{WHO} == {HERE} or "
    "(_ for _ in ()).throw(__import__('torch').OutOfMemoryError('CUDA out of memory.'))"
)


@pytest.fixture
def one_thread():
    """On the CPU the number of threads, which processes share, decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def do(pieces, monkeypatch, count=2):
    """Lets as many processes as asked evaluate expressions; the first is evaluated here."""
    monkeypatch.setattr("mimkit.evaluate.at_once.room", lambda *_: count)
    said = []
    found = at_once(
        lambda _: eval,
        lambda piece, call: call(piece),
        pieces,
        device=CPU,
        report=said.append,
    )
    return found, said


@pytest.mark.parametrize(
    ("gib_each", "seconds", "most", "expected"),
    [
        (5, 1e4, 100, 8),  # 60 free, and 5 tensors need 7.25
        (0.5, 1e4, 100, 15),  # more than cores would only wait
        (5, 1e4, 3, 3),
        (50, 1e4, 100, 1),
        (5, 20, 100, 1),  # done before the processes have started
    ],
)
def test_as_many_are_trained_at_once_as_fit(monkeypatch, gib_each, seconds, most, expected):
    monkeypatch.setattr("mimkit.evaluate.at_once.cores", lambda: 15)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * 2**30, 80 * 2**30))
    bytes_each = int(gib_each * 2**30)
    assert room(torch.device("cuda:0"), bytes_each, seconds, most) == expected
    assert room(CPU, bytes_each, seconds, most) == 1
    monkeypatch.setenv("MIMKIT_GPU_IS_SHARED", "1")  # other runs fill this GPU already
    assert room(torch.device("cuda:0"), bytes_each, seconds, most) == 1


def test_the_first_is_done_here_the_others_in_processes_and_answers_keep_their_order(monkeypatch):
    pieces = [f"({number}, print('noise'), {WHO})" for number in range(6)]
    found, said = do(pieces, monkeypatch)
    assert [number for number, _, _ in found] == [0, 1, 2, 3, 4, 5]
    processes = [process for _, _, process in found]
    assert processes[0] == HERE
    assert HERE not in processes[1:]
    assert said == ["2 trainings at once, each in a process of its own"]
    for process in processes[1:]:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("piece", "words"),
    [(FULL, "does not fit"), (DIES, "has ended")],
    ids=["no room", "died"],  # the code itself holds a process number, and workers must agree
)
def test_what_fails_beside_the_others_is_done_again_alone(monkeypatch, piece, words):
    found, said = do(["0", "1", piece, "3", "4"], monkeypatch)
    assert found == [0, 1, True, 3, 4]
    assert any(words in line for line in said)


@pytest.mark.slow
def test_what_the_function_refuses_is_raised_as_it_would_be_here_and_all_end(monkeypatch):
    with pytest.raises(DataError, match=r"^x\.png: unreadable$"):
        do(["0", REFUSED, *10 * ["__import__('time').sleep(60)"]], monkeypatch)


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_started_it():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import torch\n"
            "from mimkit.evaluate.at_once import Crew\n"
            "crew = Crew(eval, 1, torch.device('cpu'))\n"
            f"print(crew({WHO!r}), flush=True)\n"
            "crew('__import__(\"time\").sleep(600)')",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        process = int(parent.stdout.readline())
        time.sleep(0.5)  # it is in the midst of its second call
        parent.kill()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    pytest.fail("it goes on without a parent")


def test_ended_processes_are_not_called():
    with Crew(eval, 1, CPU) as crew:
        crew.close()
        with pytest.raises(LostError, match="have ended"):
            crew("1")


OPTIONS = {
    "label_fractions": (0.5,),
    "seeds": 2,
    "total_steps": 3,
    "batch_size": 8,
    "warmup_steps": 1,
    "lrs": (0.01,),
}
REGULARISED = {
    "layer_decay": 0.65,
    "drop_path": 0.3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "optimizer": "adamw",
}


def test_trainings_that_are_sent_give_the_same_numbers(subject, geometry, monkeypatch):
    def sent(function):
        return lambda *call: pickle.loads(pickle.dumps(function))(*pickle.loads(pickle.dumps(call)))

    evaluator = FineTune(geometry, **OPTIONS, **REGULARISED)
    here, kept = evaluator.run(subject), cells(subject)
    (subject.workdir / "cells.jsonl").unlink()
    monkeypatch.setattr(
        "mimkit.evaluate.rows.at_once",
        lambda make, task, pieces, **_: [task(piece, sent(make(2))) for piece in pieces],
    )
    assert evaluator.run(subject) == here
    assert cells(subject) == kept  # also the losses, to the last bit


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_fine_tuning_gives_the_same_numbers_at_once_and_in_turn(subject, geometry, monkeypatch):
    same_numbers(FineTune(geometry, **OPTIONS, **REGULARISED), subject, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_so_does_a_network_with_batch_norm(subject, geometry, monkeypatch):
    changes = ["data.image_size=16", "data.patch_size=4"]
    recipe = load("selfie_cifar", preset="demo", overrides=changes)

    def fresh(seed):
        again = recipe.model_copy(update={"seed": seed})
        return Pretrainer(build(again, mean=subject.train.mean, std=subject.train.std))

    subject = dataclasses.replace(subject, pretrainer=fresh(0), fresh=fresh)
    same_numbers(FineTune(geometry, **{**OPTIONS, "lrs": (0.01, 0.03)}), subject, monkeypatch)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_losses_agree_to_a_thousandth(subject, geometry, monkeypatch):
    def on_gpu(pretrainer):
        return pretrainer.to("cuda:0")

    gpu = dataclasses.replace(
        subject,
        device=torch.device("cuda:0"),
        pretrainer=on_gpu(subject.pretrainer),
        fresh=lambda seed: on_gpu(subject.fresh(seed)),
        train=subject.train.to("cuda:0"),
        test=subject.test.to("cuda:0"),
    )
    evaluator = FineTune(geometry, **{**OPTIONS, "precision": "float32"})

    def losses():
        evaluator.run(gpu)
        found = {line["key"]: line["loss"] for line in map(json.loads, cells(gpu))}
        (gpu.workdir / "cells.jsonl").unlink()
        return found

    in_turn = losses()
    monkeypatch.setattr("mimkit.evaluate.at_once.room", lambda *_: 2)
    # Sums of many threads have no order there; three steps do not carry that far.
    assert losses() == pytest.approx(in_turn, rel=1e-3)


def same_numbers(evaluator, subject, monkeypatch):
    in_turn, kept = evaluator.run(subject), cells(subject)
    (subject.workdir / "cells.jsonl").unlink()
    monkeypatch.setattr("mimkit.evaluate.at_once.room", lambda *_: 2)
    said = []
    told = dataclasses.replace(subject, report=said.append, detail=said.append)
    assert evaluator.run(told) == in_turn
    assert cells(subject) == kept  # also the losses, to the last bit
    assert len(kept) == len(said) - 1


def cells(subject):
    return sorted((subject.workdir / "cells.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_evaluation_repeats_no_finished_training(subject, geometry, monkeypatch):
    evaluator = FineTune(geometry, **{**OPTIONS, "seeds": 5})
    in_turn, kept = evaluator.run(subject), cells(subject)
    (subject.workdir / "cells.jsonl").unlink()
    monkeypatch.setattr("mimkit.evaluate.at_once.room", lambda *_: 2)
    said = []

    def report(line):
        said.append(line)
        if len(said) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator.run(dataclasses.replace(subject, report=report))
    finished = len(cells(subject))
    assert 6 <= finished < len(kept)  # each process may have ended some more
    again = []
    assert evaluator.run(dataclasses.replace(subject, report=again.append)) == in_turn
    assert cells(subject) == kept
    trained = [line for line in again if line.startswith("finetune")]
    assert len(trained) == len(kept) - finished
