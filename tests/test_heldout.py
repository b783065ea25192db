import dataclasses
import math

import pytest
import torch

from mimkit import Mask, Masker
from mimkit.evaluate import heldout
from mimkit.evaluate.heldout import HeldOut


@pytest.fixture
def losses(subject, monkeypatch):
    """Lets the pre-trained model give these losses, one a batch; lists the batches it saw."""

    def give(*values):
        forward, seen = subject.pretrainer.forward, []

        def instead(batch):
            loss = torch.tensor(values[len(seen)])
            seen.append(batch)
            return dataclasses.replace(
                forward(batch), terms={"pixels": loss}, metrics={"pixels/name": 10 * loss}
            )

        monkeypatch.setattr(subject.pretrainer, "forward", instead)
        return seen

    return give


def values(results):
    return {result.metric: result.value for result in results}


def test_every_term_is_measured_on_the_test_images(subject, geometry):
    (result,) = HeldOut(geometry).run(subject)
    assert (result.evaluator, result.metric) == ("heldout", "loss/pixels")
    assert (result.num_images, result.init) == (40, "pretrained")
    assert math.isfinite(result.value)


def test_a_smaller_last_batch_counts_by_its_images(subject, geometry, losses):
    seen = losses(1.0, 2.0)
    expected = (8 * 1 + 4 * 2) / 12
    assert values(HeldOut(geometry, num_images=12).run(subject)) == pytest.approx(
        {"loss/pixels": expected, "metric/pixels/name": 10 * expected}
    )
    assert [len(batch.index) for batch in seen] == [8, 4]


def test_large_batches_are_judged_in_pieces_with_the_same_masks_and_numbers(
    subject, geometry, monkeypatch
):
    large = dataclasses.replace(subject, batch_size=20)
    whole = values(HeldOut(geometry).run(large))
    forward, seen = subject.pretrainer.forward, []
    monkeypatch.setattr(
        subject.pretrainer, "forward", lambda batch: seen.append(batch) or forward(batch)
    )
    monkeypatch.setattr(heldout, "_PIECE", 6)
    assert values(HeldOut(geometry).run(large)) == pytest.approx(whole, rel=1e-5)
    assert [len(batch.index) for batch in seen] == [6, 6, 6, 2, 6, 6, 6, 2]
    mask = subject.masker.sample(20, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([batch.mask.target for batch in seen[:4]]), mask.target)


class Growing(Masker):
    """Masks one patch in the first batch, two in the second."""

    ragged = True

    def __init__(self, grid):
        self.grid = grid
        self.count = 0

    def sample(self, batch_size, generator):
        self.count += 1
        masked = torch.zeros(batch_size, self.grid.num_patches, dtype=torch.bool)
        masked[:, : self.count] = True
        return Mask.replace(masked, self.grid)


def test_every_predicted_position_counts_alike(subject, geometry, grid, losses):
    losses(1.0, 4.0)
    growing = dataclasses.replace(subject, masker=Growing(grid))
    results = values(HeldOut(geometry, num_images=16).run(growing))
    assert results["loss/pixels"] == pytest.approx((8 * 1 + 16 * 4) / 24)


def test_every_call_and_every_seed_sees_the_same_images_and_masks(subject, geometry):
    evaluator = HeldOut(geometry, num_images=20)
    first = evaluator.run(subject)
    torch.manual_seed(5)
    assert values(evaluator.run(dataclasses.replace(subject, seed=7))) == values(first)


def test_the_images_are_whole_and_spread_over_the_split(subject, geometry, losses):
    seen = losses(1.0, 1.0)
    HeldOut(geometry, num_images=10).run(subject)
    index = torch.cat([batch.index for batch in seen])
    assert index.tolist() == list(range(0, 40, 4))
    image = torch.cat([batch.image for batch in seen])
    torch.testing.assert_close(image, subject.test.view(index, subject.view))


def test_drop_path_is_off_and_modes_and_random_state_are_put_back(subject, geometry):
    pretrainer = subject.pretrainer.train()
    pretrainer.head.eval()
    state = torch.random.get_rng_state()
    first = HeldOut(geometry).run(subject)
    assert HeldOut(geometry).run(subject) == first
    assert torch.equal(state, torch.random.get_rng_state())
    assert pretrainer.encoder.training
    assert not pretrainer.head.training


def test_no_gradient_is_kept(subject, geometry):
    HeldOut(geometry).run(subject)
    assert all(parameter.grad is None for parameter in subject.pretrainer.parameters())
