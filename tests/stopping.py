"""Runs mimkit, and sends itself a signal amid its training: a program for torchrun.

SIGNAL RANK STEP and the words of mimkit: the process of that rank gets that signal in that step,
before it computes its gradients; not again where torchrun has started it anew.
"""

import os
import signal
import sys

from mimkit.cli import main
from mimkit.train.loop import Loop
from mimkit.train.restarts import is_restart


def send(number, at):
    gradients = Loop.gradients

    def stopped(loop, step, batch, **options):
        if step == at and not is_restart():
            os.kill(os.getpid(), number)
        return gradients(loop, step, batch, **options)

    Loop.gradients = stopped


if __name__ == "__main__":
    name, rank, step, *words = sys.argv[1:]
    if os.environ["RANK"] == rank:
        send(signal.Signals[name], int(step))
    sys.argv[1:] = words
    main()
