"""Copies to a GPU: all tensors of a batch, pinned, one batch ahead, beside what is computed.

Without a GPU the driver's edge alone is replaced: streams, events, pinning and copies.
"""

import io
import pickle
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mimkit.data.batches import Cut
from mimkit.data.device import ahead, on_all
from mimkit.parts.records import Batch, Grid, Mask

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def make_cut(number, labels=True):
    masked = torch.rand(3, 16, generator=torch.Generator().manual_seed(number)).argsort(1) < 8
    return Cut(
        pixels={name: torch.full((3, 3, 8, 8), number, dtype=torch.uint8) for name in ("a", "b")},
        color=torch.full((3, 3), float(number)),
        mask=Mask.drop(masked, Grid(4, 4, 2)),
        labels=torch.full((3,), number) if labels else None,
        index=torch.arange(3) + number,
    )


def tensors_of(record):
    """All tensors that pickle finds, which knows nothing of what a batch is made of."""
    found = []

    class Finder(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, torch.Tensor):
                found.append(value)
                return len(found)
            return None

    Finder(io.BytesIO()).dump(record)
    return found


@pytest.fixture
def driver(monkeypatch):
    """A driver that notes what it is told: ``log``, in order."""
    log = []
    current = ["compute"]

    def pin_memory(tensor):
        log.append(("pin", tensor))
        copy = tensor.clone()
        copy.is_pinned_here = True
        return copy

    def to(tensor, device, non_blocking=False):
        assert device == CUDA
        assert tensor.is_pinned_here  # else the processor waits
        assert non_blocking
        copy = tensor.clone()
        log.append(("copy", current[-1], copy))
        return copy

    def record_stream(tensor, stream):
        log.append(("keep", stream.name, tensor))

    class Stream:
        def __init__(self, device=None, name="copies"):
            self.name = name

        def record_event(self):
            log.append(("event", self.name))
            return SimpleNamespace(number=sum(kind == "event" for kind, *_ in log))

        def wait_event(self, event):
            log.append(("wait", self.name, event.number))

    @contextmanager
    def on(stream):
        current.append(stream.name)
        yield
        current.pop()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(name="compute"))
    return log


@pytest.mark.parametrize("labels", [True, False])
def test_a_change_reaches_every_tensor_of_a_batch(labels):
    cut = make_cut(0, labels)
    batch = Batch(cut.pixels, cut.mask, cut.labels, cut.index)
    for record in (cut, batch, (np.zeros(2), cut.pixels, None), [cut, "text"]):
        reached = []

        def note(tensor, reached=reached):
            reached.append(tensor)
            return tensor.clone()

        before, after = tensors_of(record), tensors_of(on_all(record, note))
        assert {id(tensor) for tensor in reached} == {id(tensor) for tensor in before}
        assert len(after) == len(before) == len(reached)
        assert not {id(tensor) for tensor in after} & {id(tensor) for tensor in before}
        assert type(on_all(record, note)) is type(record)


def test_loader_processes_hand_over_pinned_tensors_alone(driver):
    """Views, the four tensors of the mask, labels and index."""
    handed = make_cut(0).pin_memory()
    assert len(tensors_of(handed)) == 2 + 1 + 4 + 1 + 1
    assert all(tensor.is_pinned_here for tensor in tensors_of(handed))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_each_batch_arrives_once_in_order_and_unchanged(driver, count):
    found = list(ahead(map(make_cut, range(count)), CUDA))
    assert len(found) == count
    for number, cut in enumerate(found):
        for tensor, expected in zip(tensors_of(cut), tensors_of(make_cut(number)), strict=True):
            assert torch.equal(tensor, expected)


def test_a_batch_is_copied_beside_the_step_before_it_and_no_earlier(driver):
    stream = ahead(map(make_cut, range(4)), CUDA)
    for number in range(4):
        start = len(driver)
        cut = next(stream)
        here = driver[start:]
        copies = [entry for entry in here if entry[0] == "copy"]
        # The first call begins the first two, each later one the batch after its own.
        assert len(copies) == 9 * (2 if number == 0 else 1 if number < 3 else 0)
        assert {entry[1] for entry in copies} <= {"copies"}
        # What computes waits for this batch alone, not for the next one.
        assert [entry for entry in here if entry[0] == "wait"] == [("wait", "compute", number + 1)]
        kept = [entry[2] for entry in here if entry[0] == "keep" and entry[1] == "compute"]
        assert {id(tensor) for tensor in kept} == {id(tensor) for tensor in tensors_of(cut)}
        waited = [entry[0] for entry in here].index("wait")
        assert all(entry[0] == "keep" for entry in here[waited + 1 :])


def test_what_is_no_batch_comes_in_its_turn(driver):
    error = ValueError("image 6 is gone")
    stream = ahead([make_cut(0), error, make_cut(2)], CUDA)
    assert torch.equal(next(stream).index, torch.arange(3))
    assert next(stream) is error


def test_on_a_cpu_nothing_is_prepared_ahead():
    taken = []

    def cuts():
        for number in range(3):
            taken.append(number)
            yield make_cut(number)

    stream = ahead(cuts(), CPU)
    next(stream)
    assert taken == [0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_no_batch_takes_the_memory_of_one_in_use():
    """What computes is kept busy, so that it reads every batch long after it was dropped."""
    read = []
    for cut in ahead(map(make_cut, range(40)), CUDA):
        torch.cuda._sleep(10_000_000)
        read.append([tensor.clone() for tensor in tensors_of(cut)])
    for number, tensors in enumerate(read):
        for tensor, expected in zip(tensors, tensors_of(make_cut(number)), strict=True):
            assert torch.equal(tensor.cpu(), expected)
