"""SIGTERM, SIGINT and SIGUSR1: finish the step, checkpoint, leave."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mimkit.data.workers import asking


class Interrupted(BaseException):
    """The run was asked to stop and has written a checkpoint.

    It is a request, not an error: what catches every `Exception` must not swallow it.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.exit_code = 128 + number


@dataclass
class Request:
    """Which signal came, if any."""

    number: int | None = None


@contextmanager
def listen() -> Iterator[Request]:
    """Turns SIGTERM, SIGINT and SIGUSR1 into a request that the loop reads between steps.

    A second signal acts at once, as it would without us.
    """
    request = Request()
    before = {number: signal.getsignal(number) for number in asking()}

    def remember(number: int, _frame: FrameType | None) -> None:
        request.number = number
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
