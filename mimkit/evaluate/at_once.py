"""Several trainings at once on one GPU, each in a process of its own.

The training of a small network leaves a GPU waiting for the processor, which starts its kernels one
by one. Several processes share such a GPU, and each computes as it would alone: no number depends
on what ran beside it, or on where a killed run went on.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, Final, Self, TypeVar

import torch

from mimkit.data.workers import cores
from mimkit.train.distributed import join

Call = Callable[..., Any]
P = TypeVar("P")
R = TypeVar("R")

_SPARE: Final = 1.25
"""So much more than its tensors does a process hold of a GPU, for the allocator cuts and keeps."""
_CONTEXT_BYTES: Final = 2**30
"""What CUDA and its libraries hold in a process before its first tensor, and some more."""
_WORTH_SECONDS: Final = 60.0
"""Processes take ten seconds or so to start: less work than this is not shared out."""


GPU_IS_SHARED: Final = "MIMKIT_GPU_IS_SHARED"
"""Environment variable: set where other runs are at work on this run's GPU, which then is busy."""


class LostError(RuntimeError):
    """A process ended before it had answered, or was ended."""


def at_once(
    make: Callable[[int], Call],
    task: Callable[[P, Call], R],
    pieces: Sequence[P],
    *,
    device: torch.device,
    report: Callable[[str], None],
) -> list[R]:
    """Does every piece of work: several at once where that fits the device and pays, else in turn.

    A piece that the device has no memory for beside the others is done again afterwards, alone; so
    is all that is left when one of the processes has ended.

    Args:
        make: gives the function that does the work of one of so many processes. It, and what it
            gets and returns, must be picklable; it leaves the random state as it was.
        task: does one piece with that function. It is called from several threads, and again where
            a piece is done again: it should keep what it has.
        pieces: of work.
        device: where the function computes.
        report: told what happens.

    Returns: what ``task`` gave for each piece.
    """
    found: dict[int, R] = {}
    waiting = deque(range(len(pieces)))
    alone = _Measured(make(1), device)
    while waiting and not alone.calls:  # the first that is not known yet shows what one needs
        number = waiting.popleft()
        found[number] = task(pieces[number], alone)
    count = room(device, alone.bytes, alone.seconds * len(waiting), len(waiting))
    if count > 1:
        report(f"{count} trainings at once, each in a process of its own")
        with Crew(make(count), count, device) as crew:
            found |= _together(crew, task, {number: pieces[number] for number in waiting}, report)
    for number in waiting:
        if number not in found:
            found[number] = task(pieces[number], alone)
    return [found[number] for number in range(len(pieces))]


def room(device: torch.device, bytes_each: int, seconds: float, most: int) -> int:
    """Says how many trainings to do at once; on the CPU, which one keeps busy, it is one.

    Args:
        device: of all.
        bytes_each: that one needs on it.
        seconds: that all take in turn.
        most: how many there are.
    """
    if device.type != "cuda" or GPU_IS_SHARED in os.environ or seconds < _WORTH_SECONDS:
        return 1
    torch.cuda.empty_cache()  # what pre-training held is of no use to other processes
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(most, cores(), free // process_bytes(bytes_each)))


def process_bytes(tensors: int) -> int:
    """Estimates what a process holds of a GPU, from the most bytes that its tensors had."""
    return int(_SPARE * tensors) + _CONTEXT_BYTES


def _together(
    crew: "Crew",
    task: Callable[[P, Call], R],
    pieces: dict[int, P],
    report: Callable[[str], None],
) -> dict[int, R]:
    """Does pieces at once, and returns those that went well."""
    found: dict[int, R] = {}
    with ThreadPoolExecutor(len(crew.processes)) as threads:
        try:
            futures = {n: threads.submit(task, piece, crew) for n, piece in pieces.items()}
            for number, future in futures.items():
                try:
                    found[number] = future.result()
                except torch.OutOfMemoryError:
                    report("one does not fit beside the others: it is trained again, alone")
                except LostError as error:
                    report(f"{error}: a training is done again, alone")
        except BaseException:  # also Ctrl-C: else this would wait for the trainings that are left
            threads.shutdown(wait=False, cancel_futures=True)
            crew.close()
            raise
    return found


class _Measured:
    """Calls a function in this process, and measures what that takes."""

    def __init__(self, function: Call, device: torch.device) -> None:
        self.function = function
        self.device = device
        self.calls = 0
        self.seconds = 0.0
        self.bytes = 0

    def __call__(self, *arguments: Any) -> Any:
        cuda, start = self.device.type == "cuda", time.perf_counter()
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        answer = self.function(*arguments)
        if cuda:
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated(self.device))
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return answer


class Crew:
    """Processes that call one function, as many at once as there are.

    They end with this process, whatever ends it; Ctrl-C at the terminal does not reach them.

    Args:
        function: is sent to each of them once.
        count: how many.
        device: of the function.
    """

    def __init__(self, function: Call, count: int, device: torch.device) -> None:
        threads = max(1, torch.get_num_threads() // count)  # more than there are cores only wait
        first = pickle.dumps((str(device), threads, function))
        self.processes = [_Process(first) for _ in range(count)]
        self.idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for process in self.processes:
            self.idle.put(process)
        self.closed = False

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function in a process that is idle; there are no more callers than processes.

        Raises: LostError if one of the processes has ended, and what the function raises.
        """
        if self.closed:
            raise LostError("the processes have ended")
        process = self.idle.get()
        try:
            answer = process.call(arguments)
        except LostError:
            self.closed = True
            raise
        finally:
            self.idle.put(process)
        return answer

    def close(self) -> None:
        """Ends all processes at once."""
        self.closed = True
        for process in self.processes:
            process.end()

    def __enter__(self) -> Self:
        """Is ready; the processes are starting."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all processes."""
        self.close()


class _Process:
    """One of a crew's processes, which gets calls and gives answers by pipes.

    What is unpickled at either end was pickled by this run itself: no other program has the pipes.
    multiprocessing's own processes would import the script that asked, which may lack a guard, and
    executors leave theirs behind when the parent is killed.
    """

    def __init__(self, first: bytes) -> None:
        self.first = first
        here = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE"}}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "mimkit.evaluate.at_once"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=here,
            start_new_session=True,
        )

    def call(self, arguments: tuple[Any, ...]) -> Any:
        calls, answers = self.popen.stdin, self.popen.stdout
        assert calls is not None
        assert answers is not None
        try:
            calls.write(self.first + pickle.dumps(arguments))
            calls.flush()
            self.first = b""
            answer, error = pickle.load(answers)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as lost:
            raise LostError(f"process {self.popen.pid} has ended") from lost
        if error is not None:
            raise error
        return answer

    def end(self) -> None:
        self.popen.kill()
        with suppress(OSError), self.popen:  # closes the pipes, in which an unread call may lie
            self.popen.wait()


def _serve() -> None:
    """Is what a process of a crew does: answers calls until its parent is gone."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # loader processes close what they find there
    os.dup2(2, 1)  # what parts print must not come between answers
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(calls, received), daemon=True).start()
    device, threads, function = received.get()
    torch.set_num_threads(threads)
    with join(device):
        while True:
            answer = error = None
            try:
                answer = function(*received.get())
            except Exception as raised:  # whatever it is, the parent raises it
                error = raised.with_traceback(None)  # else its frames keep the memory
            pickle.dump((answer, error), answers)
            answers.flush()
            if error is not None and device.startswith("cuda"):
                torch.cuda.empty_cache()


def _receive(calls: IO[bytes], received: "queue.SimpleQueue[Any]") -> None:
    """Listens also while a call is worked on: the parent's end is the end of this process."""
    try:
        while True:
            received.put(pickle.load(calls))
    except EOFError:
        os._exit(0)
    except BaseException:  # said, and the end: without calls the process would wait for ever
        sys.excepthook(*sys.exc_info())
        os._exit(1)


if __name__ == "__main__":
    _serve()
