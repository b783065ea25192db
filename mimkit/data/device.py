"""Copies to a device that the processor does not wait for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies to a device without waiting for it, which only works from pinned memory."""
    if device.type == "cuda":
        tensor = pinned(tensor)
    return tensor.to(device, non_blocking=True)


def pinned(tensor: Tensor) -> Tensor:
    """Returns the same values where a GPU can fetch them itself; what is pinned stays there."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def on_all(record: _T, change: Callable[[Tensor], Tensor]) -> _T:
    """Changes every tensor of a record and of those within it.

    Args:
        record: a tensor, or a data class, mapping, tuple or list that may hold some.
        change: gets each of them.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, Mapping):
            return {name: changed(held) for name, held in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(changed(held) for held in value)
        if is_dataclass(value) and not isinstance(value, type):
            held = {field.name: changed(getattr(value, field.name)) for field in fields(value)}
            return replace(value, **held)
        return value

    found: _T = changed(record)
    return found


def ahead(records: Iterable[_T], device: torch.device) -> Iterator[_T]:
    """Gives records on a device; on CUDA the next one is copied while a step runs on this one.

    Copies have a stream of their own: in the stream that computes they would wait for the step.
    """
    if device.type != "cuda":
        for record in records:
            yield on_all(record, lambda tensor: tensor.to(device))
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def arrived(record: _T, there: torch.cuda.Event) -> _T:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(there)

        def in_use(tensor: Tensor) -> Tensor:
            # Else its memory is given to a later copy before this stream has read it.
            tensor.record_stream(stream)
            return tensor

        return on_all(record, in_use)

    before: tuple[_T, torch.cuda.Event] | None = None
    for record in records:
        with torch.cuda.stream(copies):
            sent = on_all(record, lambda tensor: send(tensor, device))
        there = copies.record_event()
        if before is not None:
            yield arrived(*before)
        before = sent, there
    if before is not None:
        yield arrived(*before)
