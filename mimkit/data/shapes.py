"""The embedded data set ``shapes``: ten arrangements of parts, drawn at any size.

Parts (rounded, textured tiles) and colours are alike in all classes, only where the parts stand
differs, and that hardly: raw pixels tell most of it.
"""

from typing import Final

import numpy as np

from mimkit.data.counter import uniform
from mimkit.data.drawing import Drawing, Images, Numbers, Plane, balanced, tint, turned, wave

# Centres of the parts as (right, down), in units of the distance between neighbouring parts.
_LAYOUTS: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "row": ((-1, 0), (0, 0), (1, 0)),
    "stack": ((0, -1), (0, 0), (0, 1)),
    "rise": ((-0.75, 0.75), (0, 0), (0.75, -0.75)),
    "fall": ((-0.75, -0.75), (0, 0), (0.75, 0.75)),
    "corner": ((-0.55, -1), (-0.55, 0), (-0.55, 1), (0.45, 1)),
    "triangle": ((-0.65, 0.5), (0.65, 0.5), (0, -0.6)),
    "square": ((-0.6, -0.6), (0.6, -0.6), (-0.6, 0.6), (0.6, 0.6)),
    "plus": ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)),
    "saltire": ((0, 0), (-0.8, -0.8), (0.8, -0.8), (-0.8, 0.8), (0.8, 0.8)),
    "ring": ((-1.05, 0), (-0.52, -0.9), (0.52, -0.9), (1.05, 0), (0.52, 0.9), (-0.52, 0.9)),
}
_MAX_PARTS: Final = max(map(len, _LAYOUTS.values()))
# Parts that a class lacks stand far outside: equal counts need no ragged loop.
_PADDED: Final = [(parts + ((99, 99),) * _MAX_PARTS)[:_MAX_PARTS] for parts in _LAYOUTS.values()]
_CENTRES: Final = np.array(_PADDED)  # (classes, parts, 2)

# What varies between pictures, drawn evenly from (lowest, highest). Lengths are in half pictures,
# angles tangents of their half (1 is a quarter turn), hues turns of the colour circle.
_RANGES: Final = {
    "right": (-0.2, 0.2),
    "down": (-0.2, 0.2),
    "spacing": (0.38, 0.6),
    "radius": (0.36, 0.46),  # of a part, as a share of the spacing
    "roundness": (0.25, 1.0),  # 1 is a disc
    "tilt": (-0.16, 0.16),  # of the arrangement
    "spin": (-0.41, 0.41),  # of each part
    "luma": (0.38, 0.62),
    "contrast": (0.16, 0.36),
    "polarity": (-1.0, 1.0),  # the sign alone: parts brighter or darker than what is behind
    "halo": (-0.16, 0.16),
    "shift": (-0.2, 0.2),  # of hue, between the two colours of a texture
    "object_hue": (0.0, 1.0),
    "object_chroma": (0.25, 0.55),
    "object_turn": (-1.0, 1.0),
    "object_period": (0.2, 0.36),
    "object_phase": (0.0, 1.0),
    "object_check": (0.0, 1.0),
    "ground_hue": (0.3, 0.7),  # away from the object's
    "ground_chroma": (0.15, 0.45),
    "ground_turn": (-1.0, 1.0),
    "ground_period": (0.3, 0.6),
    "ground_phase": (0.0, 1.0),
    "ground_check": (0.0, 1.0),
    "slope_right": (-0.5, 0.5),
    "slope_down": (-0.5, 0.5),
}
_CLASS_STREAM, _SCENE_STREAM, _PART_STREAM = range(3)
_CHUNK_PIXELS: Final = 2**16  # of one drawing pass: its arrays stay in the processor's cache

_Scene = dict[str, Plane]


def _draw(index: Numbers, image_size: int, seed: int) -> tuple[Images, Numbers]:
    # The scene depends on (seed, index) alone: another size shows the same picture, finer or
    # coarser.
    labels = balanced(seed, _CLASS_STREAM, index, len(_LAYOUTS))
    images = np.empty((len(index), 3, image_size, image_size), dtype=np.uint8)
    chunk = max(1, _CHUNK_PIXELS // image_size**2)
    for start in range(0, len(index), chunk):
        here = slice(start, start + chunk)
        _render(seed, index[here], labels[here], images[here])
    return images, labels


def _render(seed: int, index: Numbers, labels: Numbers, images: Images) -> None:
    size = images.shape[-1]
    lowest, highest = np.array(list(_RANGES.values())).T
    draws = lowest + (highest - lowest) * uniform(seed, _SCENE_STREAM, index, len(_RANGES))
    scene = {name: draws[:, k, None, None].astype(np.float32) for k, name in enumerate(_RANGES)}
    jitter = uniform(seed, _PART_STREAM, index, 3 * _MAX_PARTS).reshape(-1, _MAX_PARTS, 3) - 0.5
    centres = _CENTRES[labels] + 0.3 * jitter[:, :, :2]
    parts = np.dstack([centres, 0.5 * jitter[:, :, 2:]]).astype(np.float32)  # right, down, tone

    axis = (np.arange(1, 2 * size, 2) / size - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]  # (1, 1, W), (1, H, 1)
    distance, tone = _arrangement(scene, parts, x, y)  # (n, H, W) each

    object_mix = 0.45 * _texture(scene, "object", x, y) + tone
    slope = scene["slope_right"] * x + scene["slope_down"] * y
    ground_mix = 0.4 * _texture(scene, "ground", x, y) + slope
    halo = scene["halo"] * np.clip(1 - distance / 0.3, 0, 1)
    cover = np.clip(0.5 - distance * (size / 2), 0, 1)  # one pixel wide edges

    polarity = np.copysign(scene["contrast"], scene["polarity"])
    object_ends = _colours(scene, "object", scene["luma"] + polarity / 2, scene["object_hue"])
    opposite = scene["object_hue"] + scene["ground_hue"]
    ground_ends = _colours(scene, "ground", scene["luma"] - polarity / 2, opposite)
    for channel in range(3):
        middle, reach = ground_ends[channel]
        ground = middle + reach * ground_mix + halo
        middle, reach = object_ends[channel]
        paint = ground + cover * (middle + reach * object_mix - ground)
        images[:, channel] = np.clip(paint * 255 + 0.5, 0, 255)


def _arrangement(scene: _Scene, parts: Plane, x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """Gives each pixel's signed distance to the nearest part, and that part's tone (n, H, W)."""
    right, down, tones = np.moveaxis(parts, 2, 0)[..., None]  # (n, parts, 1) each
    # In the frame of the tilted arrangement turned by the spin, every part is upright.
    at_u, at_v = turned(scene["tilt"], scene["spacing"] * right, scene["spacing"] * down)
    at_u, at_v = turned(scene["spin"], at_u, at_v)
    u, v = turned(scene["spin"], x - scene["right"], y - scene["down"])  # (n, H, W)

    half = scene["radius"] * scene["spacing"]
    corner = scene["roundness"] * half
    straight = half - corner
    nearest = np.full_like(u, np.inf)  # squared
    tone = np.zeros_like(u)
    for k in range(_MAX_PARTS):
        beside = np.maximum(np.abs(u - at_u[:, k, None]) - straight, 0)
        below = np.maximum(np.abs(v - at_v[:, k, None]) - straight, 0)
        square = beside * beside + below * below
        np.copyto(tone, tones[:, k, None], where=square < nearest)
        np.minimum(nearest, square, out=nearest)
    return np.sqrt(nearest) - corner, tone


def _texture(scene: _Scene, layer: str, x: Plane, y: Plane) -> Plane:
    """Gives stripes or checks in [-1, 1] that run through the whole picture (n, H, W)."""
    along, across = turned(scene[f"{layer}_turn"], x, y)
    period, phase = scene[f"{layer}_period"], scene[f"{layer}_phase"]
    stripes = wave(along / period + phase)
    checked = scene[f"{layer}_check"] > 0.5
    return np.where(checked, stripes * wave(across / period), stripes)


def _colours(scene: _Scene, layer: str, luma: Plane, hue: Plane) -> list[tuple[Plane, Plane]]:
    """Gives, for red, green and blue, the middle of a layer's two colours and their distance."""
    ends = []
    for side in (-1, 1):
        parts = tint(hue + side * scene["shift"], scene[f"{layer}_chroma"])
        ends.append([luma + 0.12 * side + part for part in parts])
    return [((low + high) / 2, high - low) for low, high in zip(*ends, strict=True)]


SHAPES: Final = Drawing(tuple(_LAYOUTS), min_image_size=16, render=_draw)
