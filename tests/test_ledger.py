from mimkit.pipeline.ledger import seconds_after, seconds_before


def test_seconds_of_earlier_calls_are_counted_on():
    killed = {"seconds": {"prepare": 5.0, "train": 9.0, "evaluating": 2.0, "repeated": 1.0}}
    assert seconds_before(killed) == {"prepare": 5.0, "evaluating": 2.0, "repeated": 1.0}
    finished = {"seconds": {"prepare": 5.0, "train": 9.0, "evaluate": 3.0}}
    assert seconds_before(finished) == {"prepare": 5.0, "evaluating": 3.0, "repeated": 0.0}
    assert seconds_before({}) == {"prepare": 0.0, "evaluating": 0.0, "repeated": 0.0}


def test_seconds_after_a_checkpoint_are_those_of_its_later_intervals():
    rows = [
        {"step": 10, "time/step_ms": 1000.0},
        {"step": 20, "time/step_ms": 500.0},
        {"step": 20, "heldout/loss/pixels": 0.5},
        {"step": 30, "time/step_ms": 2000.0},
    ]
    # Of the interval from 10 to 20 only what lies behind step 16 was done after it.
    assert seconds_after(16, rows[1:]) == 4 * 0.5 + 10 * 2.0
    assert seconds_after(20, rows) == 20.0
    assert seconds_after(30, rows) == 0.0
