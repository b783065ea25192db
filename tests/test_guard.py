import pytest
import torch
from torch import nn

from mimkit.errors import TrainingError
from mimkit.train.guard import Guard, SkippedStep

YES, NO = torch.tensor(True), torch.tensor(False)


def test_a_skipped_step_is_written_down_with_its_images():
    guard = Guard(nn.Identity(), [])
    guard.after(6, torch.tensor([1, 2]), YES)
    guard.after(7, torch.tensor([5, 9]), NO)
    assert guard.read() == [SkippedStep(7, [5, 9])]
    assert guard.skipped == [SkippedStep(7, [5, 9])]
    assert guard.read() == []


def test_three_in_a_row_stop_the_run_even_across_readings():
    guard = Guard(nn.Identity(), [])
    for step in (3, 4):
        guard.after(step, torch.tensor([step]), NO)
    guard.read()
    guard.after(5, torch.tensor([5]), NO)
    with pytest.raises(TrainingError, match=r"steps 3 to 5"):
        guard.read()
    assert [item.step for item in guard.skipped] == [3, 4, 5]


def test_a_run_that_goes_on_counts_on():
    before = [SkippedStep(1, [0]), SkippedStep(3, [3]), SkippedStep(4, [4])]
    guard = Guard(nn.Identity(), before, start=5)
    guard.after(5, torch.tensor([5]), NO)
    with pytest.raises(TrainingError, match=r"steps 3 to 5"):
        guard.read()


def test_a_run_that_goes_on_after_a_good_step_begins_to_count():
    guard = Guard(nn.Identity(), [SkippedStep(3, [3]), SkippedStep(4, [4])], start=6)
    for step in (6, 7):
        guard.after(step, torch.tensor([step]), NO)
    assert len(guard.read()) == 2


def test_a_good_step_between_starts_the_count_again():
    guard = Guard(nn.Identity(), [])
    for step, flag in enumerate([NO, NO, YES, NO, NO]):
        guard.after(step, torch.tensor([step]), flag)
    assert len(guard.read()) == 4


def test_running_statistics_of_a_skipped_step_are_undone():
    norm = nn.BatchNorm1d(2)
    guard = Guard(norm, [])
    guard.before()
    norm(torch.randn(4, 2))
    guard.after(0, torch.tensor([0]), YES)
    kept = norm.running_mean.clone()
    guard.before()
    norm(torch.full((4, 2), float("nan")))
    guard.after(1, torch.tensor([1]), NO)
    assert torch.equal(norm.running_mean, kept)
    assert kept.abs().sum() > 0
