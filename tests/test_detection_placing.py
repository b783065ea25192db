"""Where images and their objects come to lie; and the way back to the full size."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mimkit.data.pixels.raster import Raster
from mimkit.data.truth.records import Instances
from mimkit.data.truth.regions import encode
from mimkit.evaluate.detection.heads import mask_in_boxes
from mimkit.evaluate.detection.paste import paste
from mimkit.evaluate.detection.placing import Variation, draw, targets, whole

ANY = Variation(scale=(0.4, 2.5), flip=True)
sizes = st.tuples(st.integers(20, 90), st.integers(20, 90))
frames = st.tuples(st.integers(16, 80), st.integers(16, 80))


def bar(size, box):
    """An image that is white in a box and black elsewhere, and the box as an instance."""
    left, top, right, bottom = box
    pixels = np.zeros((*size, 3), dtype=np.uint8)
    pixels[top:bottom, left:right] = 255
    region = encode(pixels[None, :, :, 0] > 0)
    return Image.fromarray(pixels), Instances(
        np.array([box], dtype=np.float32),
        np.zeros(1, dtype=np.int64),
        np.zeros(1, dtype=np.bool_),
        np.array([(right - left) * (bottom - top)], dtype=np.float32),
        tuple(region),
    )


@settings(max_examples=150)
@given(size=sizes, frame=frames, index=st.integers(0, 50), data=st.data())
def test_pixels_boxes_and_masks_move_alike(size, frame, index, data):
    left = data.draw(st.integers(0, size[1] - 8))
    top = data.draw(st.integers(0, size[0] - 8))
    right = data.draw(st.integers(left + 8, size[1]))
    bottom = data.draw(st.integers(top + 8, size[0]))
    image, known = bar(size, (left, top, right, bottom))
    place = draw(ANY, size, frame, seed=3, epoch=1, index=index)
    shown = place.image(Raster((image,)), "bilinear")
    assert shown.shape == (3, *place.shape)
    assert all(inner <= outer for inner, outer in zip(place.shape, frame, strict=True))
    found = targets(known, place, size, frame, masks=True)
    if not len(found["boxes"]):
        assert (shown > 127).float().mean() < 3 / min(place.shape)
        return
    (x0, y0, x1, y1), mask = found["boxes"][0].tolist(), found["masks"][0].bool()
    assert 0 <= x0 < x1 <= place.shape[1]
    assert 0 <= y0 < y1 <= place.shape[0]
    # A pixel well within the box is white and covered, one well outside neither.
    rows, cols = np.mgrid[: place.shape[0], : place.shape[1]] + 0.5
    scale = max(2.0, place.resized[0] / size[0], place.resized[1] / size[1])
    inside = (cols > x0 + scale) & (cols < x1 - scale) & (rows > y0 + scale) & (rows < y1 - scale)
    outside = (cols < x0 - scale) | (cols > x1 + scale) | (rows < y0 - scale) | (rows > y1 + scale)
    bright = shown[0].numpy()
    covered = mask[: place.shape[0], : place.shape[1]].numpy()
    assert (bright[inside] > 127).all()
    assert (bright[outside] < 128).all()
    assert covered[inside].all()
    assert not covered[outside].any()
    assert not mask[place.shape[0] :].any()
    assert not mask[:, place.shape[1] :].any()


@settings(max_examples=100)
@given(size=sizes, frame=frames)
def test_boxes_come_back_to_the_full_size(size, frame):
    place = whole(size, frame)
    assert place.shape == place.resized
    boxes = np.random.default_rng(0).uniform(0, 1, (5, 4)).astype(np.float32)
    boxes = np.sort(boxes.reshape(5, 2, 2), axis=1).reshape(5, 4) * [*size[::-1], *size[::-1]]
    moved = torch.from_numpy(place.boxes(boxes.astype(np.float32), *size))
    assert torch.allclose(place.back(moved, *size), torch.tensor(boxes).float(), atol=1e-3)
    far = torch.tensor([[-50.0, -50.0, 500.0, 500.0]])
    assert place.back(far, *size).tolist() == [[0, 0, size[1], size[0]]]


def test_an_image_keeps_its_aspect_and_fits():
    place = whole((200, 400), (64, 96))
    assert place.resized == (48, 96)
    assert not place.flip


def test_places_follow_from_seed_pass_and_number_alone():
    def drawn(**change):
        known = {"seed": 1, "epoch": 2, "index": 3, **change}
        return draw(ANY, (50, 60), (40, 40), **known)

    assert drawn() == drawn()
    assert len({drawn(**{key: 9}) for key in ("seed", "epoch", "index")} | {drawn()}) == 4


def test_scales_flips_and_corners_spread_as_asked():
    frame, size = (40, 40), (100, 100)
    places = [draw(ANY, size, frame, seed=0, epoch=0, index=k) for k in range(2000)]
    scales = np.array([place.resized[0] / 40 for place in places])
    assert scales.min() < 0.45
    assert scales.max() > 2.45
    assert scales.mean() == pytest.approx(1.45, abs=0.05)
    assert np.mean([place.flip for place in places]) == pytest.approx(0.5, abs=0.05)
    room = np.array([place.resized[0] - place.shape[0] for place in places])
    corner = np.array([place.corner[0] for place in places])
    assert (corner >= 0).all()
    assert (corner <= room).all()
    assert (corner[room > 20] / room[room > 20]).mean() == pytest.approx(0.5, abs=0.05)


def test_crowds_and_what_a_crop_leaves_nothing_of_are_not_learned():
    _, known = bar((40, 40), (0, 0, 10, 10))
    crowd = Instances(known.boxes, known.labels, ~known.crowd, known.areas, known.regions)
    frame, place = (40, 40), whole((40, 40), (40, 40))
    assert len(targets(known, place, (40, 40), frame, masks=True)["boxes"]) == 1
    assert targets(crowd, place, (40, 40), frame, masks=True)["masks"].shape == (0, 40, 40)
    places = [draw(ANY, (40, 40), frame, seed=0, epoch=0, index=k) for k in range(200)]
    counts = {len(targets(known, each, (40, 40), frame, masks=True)["boxes"]) for each in places}
    assert counts == {0, 1}


class TestPaste:
    def truth(self, side=97):
        rows, cols = np.mgrid[:side, :side]
        discs = [(rows - 40) ** 2 + (cols - 50) ** 2 < 20**2, (rows - 8) ** 2 + cols**2 < 7.5**2]
        boxes = [self.box(disc) for disc in discs]
        return np.stack(discs), torch.tensor(boxes, dtype=torch.float32)

    @staticmethod
    def box(mask):
        rows, cols = np.nonzero(mask)
        return cols.min(), rows.min(), cols.max() + 1, rows.max() + 1

    def test_masks_in_boxes_become_the_pixels_that_they_were(self):
        masks, boxes = self.truth()
        small = mask_in_boxes(torch.from_numpy(masks), boxes, torch.arange(2), 28)
        pasted = paste(small[:, None], boxes, 97, 97)
        for truth, found in zip(masks, pasted, strict=True):
            assert (truth & found).sum() / (truth | found).sum() > 0.97

    def test_a_full_mask_covers_its_box_alone(self):
        boxes = torch.tensor([[3.0, 5.0, 40.0, 30.0], [-5.0, 90.0, 10.0, 120.0]])
        pasted = paste(torch.ones(2, 1, 28, 28), boxes, 97, 99)
        for mask, box in zip(pasted, [(3, 5, 40, 30), (0, 90, 10, 97)], strict=True):
            assert self.box(mask) == box
            assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])

    def test_it_is_the_interpolation_written_out(self):
        rng = np.random.default_rng(0)
        mask = rng.random((6, 6)).astype(np.float32)
        box = (2.3, 4.1, 17.2, 15.9)
        found = paste(torch.from_numpy(mask)[None, None], torch.tensor([box]), 20, 20)[0]
        bordered = np.pad(mask, 1)  # outside of the mask is nothing
        for row in range(20):
            for col in range(20):
                y = (row + 0.5 - box[1]) / (box[3] - box[1]) * 6 + 0.5
                x = (col + 0.5 - box[0]) / (box[2] - box[0]) * 6 + 0.5
                if not (0 <= y < 7 and 0 <= x < 7):
                    assert not found[row, col]
                    continue
                top, left = int(y), int(x)
                down, right = y - top, x - left
                value = (
                    bordered[top, left] * (1 - down) * (1 - right)
                    + bordered[top + 1, left] * down * (1 - right)
                    + bordered[top, left + 1] * (1 - down) * right
                    + bordered[top + 1, left + 1] * down * right
                )
                if abs(value - 0.5) > 1e-5:
                    assert found[row, col] == (value > 0.5)

    def test_many_at_once_are_cut_into_pieces(self, monkeypatch):
        _, boxes = self.truth()
        masks = torch.rand(2, 1, 28, 28)
        together = paste(masks, boxes, 97, 97)
        monkeypatch.setattr("mimkit.evaluate.detection.paste._MOST_PIXELS", 1)
        assert np.array_equal(paste(masks, boxes, 97, 97), together)
        assert paste(masks[:0], boxes[:0], 4, 5).shape == (0, 4, 5)
