"""Says what machine this is; makes photographs and a tokenizer."""

import os
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from on_gpu.work import Work, timed

_HEIGHT, _WIDTH = 375, 500
_QUALITY: Final = 90
"""Such pictures then take about 110 kB, as ImageNet's do in the mean."""
_CLASSES: Final = 4
_HELD_OUT: Final = 8
"""One in so many is a test image."""


def run(work: Work) -> None:
    """Makes all that does not travel."""
    work.tell("python", platform.python_version())
    work.tell("processor cores", os.cpu_count() or 1)
    seconds = timed(lambda: _photos(work))
    files = list(work.photos.rglob("*.jpg"))
    size = sum(file.stat().st_size for file in files) / len(files)
    work.tell("JPEG files", len(files))
    work.tell("their mean size", size / 1000, "kB")
    work.tell("made in", seconds, "s")
    _machine(work)
    work.tell("parameters of the random tokenizer", _tokenizer(work))


def photo(number: int) -> Image.Image:
    """Makes a picture with the spectrum of photographs, 1/f, from its number."""
    random = np.random.default_rng(number)
    down = np.fft.fftfreq(_HEIGHT)[:, None] * _HEIGHT
    right = np.fft.rfftfreq(_WIDTH)[None, :] * _WIDTH
    spectrum = 1 / np.maximum(np.hypot(down, right), 1)
    noise = np.fft.rfft2(random.standard_normal((3, _HEIGHT, _WIDTH)))
    planes = np.fft.irfft2(noise * spectrum, s=(_HEIGHT, _WIDTH))
    planes = planes[:1] + 0.3 * planes  # colours vary less than brightness
    planes = planes / planes.std(axis=(1, 2), keepdims=True)
    pixels = np.clip(128 + 55 * planes, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def _photos(work: Work) -> None:
    # Below the name by which the recipes look for it.
    root = work.photos / "in224"
    for split in ("train", "val"):
        for name in range(_CLASSES):
            (root / split / f"class_{name}").mkdir(parents=True)
    files = []
    for number in range(work.sizes.num_photos):
        split = "train" if number % _HELD_OUT else "val"
        place = number // _HELD_OUT % _CLASSES
        files.append((number, root / split / f"class_{place}" / f"{number}.jpg"))
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(_save, *zip(*files, strict=True), chunksize=8):
            pass


def _save(number: int, file: Path) -> None:
    photo(number).save(file, quality=_QUALITY)


def _machine(work: Work) -> None:
    import torch

    import mimkit

    work.tell("torch", torch.__version__)
    work.tell("mimkit", mimkit.__version__)
    if work.device.startswith("cuda"):
        about = torch.cuda.get_device_properties(work.device)
        work.tell("GPU", about.name)
        work.tell("memory of the GPU", about.total_memory / 2**30, "GiB")


def _tokenizer(work: Work) -> int:
    from dall_e import Encoder
    from safetensors.torch import save_file

    sizes = work.sizes
    encoder = Encoder(n_hid=sizes.hidden_dim, vocab_size=sizes.codebook_size, requires_grad=False)
    tensors = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    save_file(tensors, work.tokenizer)
    return sum(tensor.numel() for tensor in tensors.values())
