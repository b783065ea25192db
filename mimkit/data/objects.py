"""The embedded data set ``objects``: ten objects, each an arrangement of six out of nine parts.

Which part stands beside which is the class. So what a hidden part looks like follows from the
others by way of the class, and masked pre-training has to find it out. Colours, place, tilt, noise
and stray parts say nothing about it, and spoil what raw pixels tell.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.counter import uniform
from mimkit.data.drawing import (
    Annotation,
    Drawing,
    Images,
    Numbers,
    Plane,
    balanced,
    tint,
    turned,
)

# Nine places from left to right and from top to bottom, each with the number of a part. Every part
# and every place is used by six or seven classes, and no part stands in one place in more than two.
_LAYOUTS: Final = {
    "alpha": "086.52..7",
    "beta": "..0184.76",
    "gamma": "213.60..5",
    "delta": "5..0372.1",
    "epsilon": ".2534.60.",
    "zeta": "7..60.584",
    "eta": "671...842",
    "theta": ".874.315.",
    "iota": "84...1327",
    "kappa": "1382.54..",
}
_SIDE: Final = 3
_PLACES: Final = np.array(
    [[-1 if one == "." else int(one) for one in layout] for layout in _LAYOUTS.values()]
)

# What varies between pictures, drawn evenly from (lowest, highest). Lengths are in half pictures,
# angles tangents of their half (1 is a quarter turn), hues turns of the colour circle.
_RANGES: Final = {
    "right": (-0.28, 0.28),
    "down": (-0.28, 0.28),
    "spacing": (0.44, 0.6),  # between neighbouring places
    "radius": (0.4, 0.46),  # of a part, as a share of the spacing
    "tilt": (-0.17, 0.17),
    "luma": (0.35, 0.65),
    "contrast": (0.22, 0.5),
    "polarity": (-1.0, 1.0),  # the sign alone: object brighter or darker than what is behind
    "object_hue": (0.0, 1.0),
    "object_chroma": (0.1, 0.5),
    "ground_hue": (0.0, 1.0),
    "ground_chroma": (0.1, 0.5),
    "slope_right": (-0.14, 0.14),
    "slope_down": (-0.14, 0.14),
    "noise": (0.0, 0.1),
    "stray": (0.25, 0.45),  # how far stray parts go from the ground's colour to the object's
}
_JITTER: Final = 0.12  # of a part's place, as a share of the spacing
_TONES: Final = 0.25  # how far parts differ in brightness, as a share of the contrast
_NUM_STRAY: Final = 3
_STRAY_RADIUS: Final = (0.16, 0.24)
_CLASS_STREAM, _SCENE_STREAM, _PART_STREAM, _STRAY_STREAM, _NOISE_STREAM = range(5)
_CHUNK_PIXELS: Final = 2**17  # of one drawing pass
_FAR: Final = np.float32(9.0)


def annotate(index: Numbers, *, image_size: int, seed: int = 0) -> Annotation:
    """Gives the pixel masks and boxes of the pictures with these numbers; see `Annotation`."""
    kinds = _PLACES[balanced(seed, _CLASS_STREAM, index, len(_LAYOUTS))]
    parts = np.empty((len(index), image_size, image_size), dtype=np.uint8)
    for here in _chunks(len(index), image_size):
        scene = _scene(seed, index[here])
        distance, place, _ = _object(scene, seed, index[here], kinds[here], image_size)
        parts[here] = np.where(distance < 0, place + 1, 0)
    shown = parts[:, None] == np.arange(1, _SIDE**2 + 1)[:, None, None]  # (n, 9, H, W)
    shown = np.concatenate([shown, shown.any(axis=1, keepdims=True)], axis=1)
    sides = [_ends(np.any(shown, axis=axis)) for axis in (2, 3)]
    boxes = np.stack([ends[side] for side in (0, 1) for ends in sides], axis=2)
    return Annotation(parts, kinds + 1, boxes)


def _ends(shown: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Gives the first true place along the last axis, and the one after the last; else zeros."""
    size = shown.shape[-1]
    there = shown.any(axis=-1)
    first = np.argmax(shown, axis=-1)
    after = size - np.argmax(shown[..., ::-1], axis=-1)
    return np.where(there, first, 0), np.where(there, after, 0)


def _draw(index: Numbers, image_size: int, seed: int) -> tuple[Images, Numbers]:
    # The scene depends on (seed, index) alone: another size shows the same picture, but each pixel
    # has its own noise.
    labels = balanced(seed, _CLASS_STREAM, index, len(_LAYOUTS))
    images = np.empty((len(index), 3, image_size, image_size), dtype=np.uint8)
    for here in _chunks(len(index), image_size):
        _render(seed, index[here], _PLACES[labels[here]], images[here])
    return images, labels


def _render(seed: int, index: Numbers, kinds: Numbers, images: Images) -> None:
    size = images.shape[-1]
    scene, (x, y) = _scene(seed, index), _axes(size)
    distance, _, tone = _object(scene, seed, index, kinds, size)  # (n, H, W) each
    cover = _cover(distance, size)
    veil = scene["stray"] * _cover(_strays(seed, index, x, y), size)

    polarity = np.copysign(scene["contrast"], scene["polarity"])
    slope = scene["slope_right"] * x + scene["slope_down"] * y
    noise = uniform(seed, _NOISE_STREAM, index, size * size).reshape(-1, size, size) - 0.5
    grain = 2 * scene["noise"] * noise.astype(np.float32) + slope
    object_tint = tint(scene["object_hue"], scene["object_chroma"])
    ground_tint = tint(scene["ground_hue"], scene["ground_chroma"])
    shade = _TONES * scene["contrast"] * tone
    for channel in range(3):
        paint = scene["luma"] + polarity / 2 + object_tint[channel]
        ground = scene["luma"] - polarity / 2 + ground_tint[channel]
        behind = ground + veil * (paint - ground)
        pixels = behind + cover * (paint + shade - behind) + grain
        images[:, channel] = np.clip(pixels * 255 + 0.5, 0, 255)


def _chunks(count: int, image_size: int) -> list[slice]:
    step = max(1, _CHUNK_PIXELS // image_size**2)
    return [slice(start, start + step) for start in range(0, count, step)]


def _axes(size: int) -> tuple[Plane, Plane]:
    """Gives the pixels' centres, from -1 to 1: to the right (1, 1, W), and down (1, H, 1)."""
    axis = (np.arange(1, 2 * size, 2) / size - 1).astype(np.float32)
    return axis[None, None, :], axis[None, :, None]


def _scene(seed: int, index: Numbers) -> dict[str, Plane]:
    lowest, highest = np.array(list(_RANGES.values())).T
    draws = lowest + (highest - lowest) * uniform(seed, _SCENE_STREAM, index, len(_RANGES))
    return {name: draws[:, k, None, None].astype(np.float32) for k, name in enumerate(_RANGES)}


def _cover(distance: Plane, size: int) -> Plane:
    edges: Plane = np.clip(0.5 - distance * (size / 2), 0, 1)  # one pixel wide
    return edges


def _object(
    scene: dict[str, Plane], seed: int, index: Numbers, kinds: Numbers, size: int
) -> tuple[Plane, NDArray[np.uint8], Plane]:
    """Gives each pixel's distance to the nearest part, that part's place, and its tone."""
    jitter = uniform(seed, _PART_STREAM, index, 3 * _SIDE**2).reshape(-1, _SIDE**2, 3) - 0.5
    draws = jitter.astype(np.float32)[..., None, None]  # (n, 9, 3, 1, 1)
    spacing, radius = scene["spacing"], scene["radius"]
    x, y = _axes(size)
    u, v = turned(scene["tilt"], x - scene["right"], y - scene["down"])
    u, v = u / spacing, v / spacing  # 1 from place to place
    distance = np.full_like(u, _FAR)
    nearest = np.zeros(u.shape, dtype=np.uint8)
    tone = np.zeros_like(u)
    for place in range(_SIDE**2):
        down, right = (steps - 1 for steps in divmod(place, _SIDE))
        for kind, outline in enumerate(_PARTS):
            here = np.flatnonzero(kinds[:, place] == kind)
            side, drop, shade = np.moveaxis(draws[here, place], 1, 0)
            at_u = (u[here] - right - _JITTER * side) / radius[here]
            at_v = (v[here] - down - _JITTER * drop) / radius[here]
            found = outline(at_u, at_v) * radius[here] * spacing[here]
            closer = found < distance[here]
            distance[here] = np.where(closer, found, distance[here])
            nearest[here] = np.where(closer, place, nearest[here])
            tone[here] = np.where(closer, shade, tone[here])
    return distance, nearest, tone


def _strays(seed: int, index: Numbers, x: Plane, y: Plane) -> Plane:
    """Gives each pixel's distance to the nearest stray part."""
    draws = uniform(seed, _STRAY_STREAM, index, 5 * _NUM_STRAY).reshape(-1, _NUM_STRAY, 5)
    kinds = (draws[:, :, 4] * len(_PARTS)).astype(np.int64)
    where = draws.astype(np.float32)[..., None, None]
    distance = np.full((len(index), y.shape[1], x.shape[2]), _FAR)
    for number in range(_NUM_STRAY):
        for kind, outline in enumerate(_PARTS):
            here = np.flatnonzero(kinds[:, number] == kind)
            right, down, size, turn = np.moveaxis(where[here, number, :4], 1, 0)
            radius = _STRAY_RADIUS[0] + (_STRAY_RADIUS[1] - _STRAY_RADIUS[0]) * size
            at_u, at_v = turned(2 * turn - 1, x - (2 * right - 1), y - (2 * down - 1))
            found = outline(at_u / radius, at_v / radius) * radius
            distance[here] = np.minimum(distance[here], found)
    return distance


# The parts: each gives the signed distance from its outline, negative inside; it fits into -1 to 1.


def _disc(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v) - 0.85


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - 0.66) - 0.24


def _frame(u: Plane, v: Plane) -> Plane:
    return np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.62) - 0.23


def _cross(u: Plane, v: Plane) -> Plane:
    across, along = np.abs(u), np.abs(v)
    upright = np.maximum(across - 0.27, along - 0.9)
    return np.minimum(upright, np.maximum(along - 0.27, across - 0.9))


def _saltire(u: Plane, v: Plane) -> Plane:
    return _cross((u + v) * _ROOT_HALF, (u - v) * _ROOT_HALF)


def _bars(u: Plane, v: Plane) -> Plane:
    bars: Plane = np.maximum(np.abs(u) - 0.85, np.abs(np.abs(v) - 0.55) - 0.28)
    return bars


def _pillars(u: Plane, v: Plane) -> Plane:
    return _bars(v, u)


def _triangle(u: Plane, v: Plane) -> Plane:
    triangle: Plane = np.maximum(v - 0.7, (2 * np.abs(u) - v - 0.9) * _ROOT_FIFTH)
    return triangle


def _diamond(u: Plane, v: Plane) -> Plane:
    diamond: Plane = (np.abs(u) + np.abs(v) - 0.95) * _ROOT_HALF
    return diamond


_ROOT_HALF: Final = np.sqrt(np.float32(0.5))
_ROOT_FIFTH: Final = np.sqrt(np.float32(0.2))
_PARTS: Final[tuple[Callable[[Plane, Plane], Plane], ...]] = (
    _disc,
    _ring,
    _frame,
    _cross,
    _saltire,
    _bars,
    _pillars,
    _triangle,
    _diamond,
)


def _annotate(index: Numbers, image_size: int, seed: int) -> Annotation:
    return annotate(index, image_size=image_size, seed=seed)


OBJECTS: Final = Drawing(
    tuple(_LAYOUTS),
    min_image_size=24,
    render=_draw,
    parts=tuple(outline.__name__.removeprefix("_") for outline in _PARTS),
    annotate=_annotate,
)
