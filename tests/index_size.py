"""Memory and disk that a data set takes by the number of its images.

    python tests/index_size.py PLACE [COUNT ...]

makes folders and tar shards of so many small images in PLACE (1,000, 10,000 and 100,000 unless
counts are given), opens each in a fresh process, once when nothing is known of it and once more,
and writes a table of bytes an image, and of nanoseconds until it is open. Memory is what the
process alone has (RssAnon, opened, and at its height), less that of a data set of one hundred
images; mapped files are shared by all processes and go when memory is short. Linux only.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mimkit.data.batches import positions
from mimkit.data.opening import open_sources
from mimkit.recipe.sections import DataSection

KINDS = ("folder", "shards")
CLASSES = 10
FEWEST = 100
SHARD = 5_000
SIDE = 65
"""Pixels: images of up to 64 are kept decoded."""


def make(place: Path, kind: str, count: int) -> Path:
    """Makes a training part of so many images, and a test part of one hundred."""
    done = place / f"{kind}-{count}"
    if done.exists():
        return done
    folder = place / f".{kind}-{count}"
    shutil.rmtree(folder, ignore_errors=True)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    for part, number in (("train", count), ("test", FEWEST)):
        (write_folder if kind == "folder" else write_shards)(folder, part, number, file.getvalue())
    folder.rename(done)
    return done


def write_folder(folder: Path, part: str, count: int, content: bytes) -> None:
    for label in range(CLASSES):
        (folder / part / f"class_{label}").mkdir(parents=True)
    for number in range(count):
        path = folder / part / f"class_{number % CLASSES}" / f"image_{number:09}.png"
        path.write_bytes(content)


def write_shards(folder: Path, part: str, count: int, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    for shard, start in enumerate(range(0, count, SHARD)):
        with tarfile.open(folder / f"{part}-{shard:05}.tar", "w") as tar:
            for number in range(start, min(start + SHARD, count)):
                for kind, said in (("png", content), ("cls", b"%d" % (number % CLASSES))):
                    info = tarfile.TarInfo(f"image_{number:09}.{kind}")
                    info.size = len(said)
                    tar.addfile(info, io.BytesIO(said))


class Height:
    """The most memory of its own that this process has had since it was made."""

    def __init__(self):
        self.most, self.over = private(), threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while not self.over.wait(0.002):
            self.most = max(self.most, private())

    def read(self):
        self.over.set()
        return max(self.most, private())


def private() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("RssAnon")


def look(folder: str) -> None:
    """Opens a data set and draws a batch; prints what it took."""
    start, before, height = time.perf_counter(), private(), Height()
    section = DataSection(name=folder, image_size=64, patch_size=8)
    train, _ = open_sources(section)
    opened, seconds = private(), time.perf_counter() - start
    train.extent(torch.from_numpy(positions(len(train), 256, 0, 0, train.shards)[0]))
    told = {"opened": opened - before, "drawn": private() - before}
    told |= {"height": height.read() - before, "nanoseconds": round(seconds * 1e9)}
    sys.stdout.write(f"{json.dumps(told)}\n")


def measured(folder: Path, cache: Path) -> dict[str, dict[str, int]]:
    """Opens a data set twice, each time in a process of its own."""
    found = {}
    for which in ("first", "again"):
        done = subprocess.run(
            [sys.executable, __file__, "--look", str(folder)],
            env={**os.environ, "MIMKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        found[which] = json.loads(done.stdout.splitlines()[-1])
    found["disk"] = {"cache": sum(f.stat().st_size for f in cache.rglob("*") if f.is_file())}
    return found


def slopes(place: Path, kind: str, counts: list[int]) -> dict[int, dict[str, float]]:
    """Bytes of an image by count: what a data set takes beyond one of a hundred images."""
    found, least = {}, None
    for count in (FEWEST, *counts):
        cache = place / f"cache-{kind}-{count}"
        shutil.rmtree(cache, ignore_errors=True)
        took = measured(make(place, kind, count), cache)
        flat = {
            f"{which} {name}": value for which, of in took.items() for name, value in of.items()
        }
        least = least or flat
        if count != FEWEST:
            more = count - FEWEST
            found[count] = {name: (value - least[name]) / more for name, value in flat.items()}
    return found


def main(place: Path, counts: list[int]) -> None:
    """Writes a table of bytes an image."""
    for kind in KINDS:
        for count, of in slopes(place, kind, counts).items():
            row = "  ".join(f"{name} {value:,.0f}" for name, value in of.items())
            sys.stdout.write(f"{kind:8} {count:9,}  {row}\n")


if __name__ == "__main__":
    if sys.argv[1] == "--look":
        look(sys.argv[2])
    else:
        main(Path(sys.argv[1]), [int(each) for each in sys.argv[2:]] or [1_000, 10_000, 100_000])
