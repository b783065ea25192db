import os
import signal
import sys
import threading

import pytest

from mimkit.study.gauge import _at_once, _call
from mimkit.train.signals import Interrupted

WAIT = """
import signal, sys, time
def leave(number, frame):
    open(sys.argv[1], "w").write(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
open(sys.argv[1] + ".ready", "w").close()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_a_trial_and_ends_the_comparison(tmp_path, number):
    told = tmp_path / "told"

    def ask():
        while not told.with_name("told.ready").exists():
            pass
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted, match="while the trial of mae was at work") as caught:
        _call([sys.executable, "-c", WAIT, str(told)], dict(os.environ), "mae")
    assert told.read_text() == str(number.value)
    assert caught.value.exit_code == 128 + number


def test_a_trial_gives_its_exit_code_and_its_errors():
    command = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
    assert _call(command, dict(os.environ), "mae") == (1, "no such thing")


@pytest.mark.parametrize(
    ("device", "has_gpu", "expected"),
    [("cpu", True, 4), (None, False, 4), (None, True, 1), ("cuda:0", True, 1)],
)
def test_a_gpu_measures_one_method_at_a_time(device, has_gpu, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    assert _at_once(device, 4) == expected
