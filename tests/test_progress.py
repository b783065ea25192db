import io

import pytest
from rich.console import Console

from mimkit.report.progress import Display

METRICS = {"patches/accuracy": 0.412, "patches/chance": 0.25}


@pytest.fixture
def plain():
    return Console(file=io.StringIO(), width=80)


def lines(console):
    return console.file.getvalue().splitlines()


def test_without_a_terminal_each_due_update_is_one_plain_line(plain):
    with Display(1000, 0, plain, every_seconds=0) as progress:
        progress.update(100, 2310.4, 1.2345, METRICS)
        progress.update(1000, 2310.4, 1.2, METRICS)
    first, last = lines(plain)
    assert first.startswith("step 100/1,000 (10 %)  2,310 images/s  loss 1.234  accuracy 41.2 %  ")
    assert first.endswith(" left")
    assert last.endswith("accuracy 41.2 %  done")
    assert "\x1b" not in plain.file.getvalue()


def test_without_a_terminal_most_updates_stay_silent_but_never_the_last(plain):
    with Display(1000, 0, plain, every_seconds=3600) as progress:
        for step in range(50, 1001, 50):
            progress.update(step, 100.0, 1.0, {})
    assert [line.split(" (")[0] for line in lines(plain)] == ["step 50/1,000", "step 1,000/1,000"]


def test_a_long_line_is_not_wrapped(plain):
    metrics = {f"term/a_rather_long_metric_name_{number}": 0.5 for number in range(3)}
    with Display(1000, 0, plain) as progress:
        progress.update(1, 100.0, 1.0, metrics)
    assert len(lines(plain)) == 1


def test_at_most_three_metrics_are_shown_and_what_guessing_reaches_never(plain):
    metrics = METRICS | {"patches/majority": 0.3} | {f"patches/m{n}": 0.5 for n in range(5)}
    with Display(1000, 0, plain) as progress:
        progress.update(1, 100.0, 1.0, metrics)
    text = plain.file.getvalue()
    assert "accuracy 41.2 %  m0 0.5  m1 0.5" in text
    assert "m2" not in text
    assert "chance" not in text
    assert "majority" not in text


def test_metrics_of_one_name_are_told_apart_by_their_term(plain):
    with Display(1000, 0, plain) as progress:
        progress.update(1, 100.0, 1.0, {"pixels/accuracy": 0.5, "codes/accuracy": 0.25})
    assert "pixels/accuracy 50.0 %  codes/accuracy 25.0 %" in plain.file.getvalue()


def test_the_time_left_counts_only_steps_of_this_process(plain, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("mimkit.report.progress.time.monotonic", lambda: now[0])
    with Display(1000, 900, plain) as progress:
        now[0] += 50.0
        progress.update(950, 100.0, 1.0, {})
    assert lines(plain)[0].endswith("50\u202fs left")


def test_slow_rates_keep_a_decimal(plain):
    with Display(10, 0, plain) as progress:
        progress.update(1, 0.34, 1.0, {})
    assert "0.3 images/s" in plain.file.getvalue()


def test_a_message_is_printed_as_it_is(plain):
    with Display(10, 0, plain) as progress:
        progress.message("images [1, 2] of step 3 [bold]")
    assert lines(plain) == ["images [1, 2] of step 3 [bold]"]


def test_on_a_terminal_of_80_columns_bar_time_and_numbers_fit():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with Display(120_000, 0, console) as progress:
        progress.update(60_000, 2310.4, 1.2345, METRICS)
    text = console.file.getvalue()
    assert "step 60,000/120,000" in text
    assert "50%" in text
    assert "2,310 images/s  loss 1.234  accuracy 41.2 %" in text
    assert "\u2026" not in text
