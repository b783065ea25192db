"""What a tar shard holds, by the conventions of WebDataset, found without unpacking it.

Files that follow one another and differ only in what comes after the first dot are one sample:
``cat/01.jpg``, ``cat/01.cls``, ``cat/01.json``.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from mimkit.data.intake.columns import Asked
from mimkit.data.intake.labels import LABEL_COLUMNS
from mimkit.data.intake.walk import ARRAYS, EXTENSIONS, is_utf8
from mimkit.data.intake.words import is_mask_word
from mimkit.files import write_atomic

TAR_KINDS: Final = (".tar", ".tar.gz", ".tgz")
LABEL_FIELDS: Final = ("cls", *(name for name in LABEL_COLUMNS if name != "cls"))
"""What fields, or keys of a sample's JSON, that hold labels are called, best first."""
_SAMPLE: Final = re.compile(r"(?P<key>(?:.*/|)[^.]+)[.](?P<field>[^/]*)")
_LONGEST_LABEL: Final = 2**20
"""Bytes; what is longer holds no label."""
_BLOCK: Final = 512
_FIRST: Final = 8
Span = tuple[int, int]
"""Where the content of a file begins in a shard, and its length, both in bytes."""


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard that hold an image.

    Args:
        names: (n) of the images' files.
        spans: (n, 2) int64, where they lie: offset and length in bytes.
        masks: (n, 2) int64, likewise of their masks; (0, -1) where there is none.
        labels: the labels of each field that may hold some, n each, None where one is missing.
        known: every field there is, and the keys of JSON.
        problem: why the shard ends before it should, or nothing.
    """

    names: tuple[str, ...]
    spans: NDArray[np.int64]
    masks: NDArray[np.int64]
    labels: Mapping[str, tuple[str | None, ...]]
    known: tuple[str, ...]
    problem: str = ""

    def __len__(self) -> int:
        return len(self.names)


def is_tar(name: str) -> bool:
    """Whether a file is a tar shard by its name.

    >>> is_tar("train-000.tar.gz"), is_tar("train.zip")
    (True, False)
    """
    return name.lower().endswith(TAR_KINDS)


def is_webdataset(path: Path) -> bool:
    """Whether a tar begins with an image and something else of the same name, as a sample does.

    Raises: OSError if it cannot be read.
    """
    opened = gzip.open if path.name.lower().endswith("gz") else open
    damaged = contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
    with damaged, opened(path, "rb") as file:
        packed = tarfile.open(fileobj=file, mode="r|")  # noqa: SIM115 -- read as it comes
        first = [info.name for info in itertools.islice(packed, _FIRST) if info.isreg()]
        samples = [found for name in first if (found := _SAMPLE.fullmatch(name))]
        fields = [found["field"] for found in samples if found["key"] == samples[0]["key"]]
        return any(map(_is_image, fields)) and len(fields) > 1
    return False


def index_tar(file: IO[bytes], asked: Asked) -> ShardIndex:
    """Goes through a shard, from header to header.

    What is whole of a shard that is cut or damaged is kept, and the problem named.

    Args:
        file: opened for reading, seekable, not compressed.
        asked: which fields hold image, mask and label.
    """
    watch = _Watch()
    names: list[str] = []
    spans: list[Span] = []
    masks: list[Span] = []
    labels: dict[str, dict[int, str]] = {}
    known: dict[str, None] = {}
    wanted = LABEL_FIELDS if asked.label is None else (asked.label,)
    wanted = () if asked.label == "none" else wanted
    for key, fields in _samples(file, watch):
        # KEY.jpg before KEY.left.jpg; KEY.npy may be features of it, or stand for itself.
        candidates = sorted(fields, key=lambda name: (_is_array(name), "." in name))
        image = next(
            (name for name in candidates if _is_meant(name, asked.image, asked.mask)), None
        )
        known.update(dict.fromkeys(fields))
        if image is None:
            continue
        mask = next((name for name in fields if _is_mask(name, image, asked.mask)), None)
        for name, value in _labels(file, fields, wanted, known):
            labels.setdefault(name, {})[len(names)] = value
        names.append(f"{key}.{image}")
        spans.append(fields[image])
        masks.append(fields[mask] if mask else (0, -1))
    numbers = range(len(names))
    return ShardIndex(
        names=tuple(names),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2),
        masks=np.array(masks, dtype=np.int64).reshape(-1, 2),
        labels={name: tuple(map(of.get, numbers)) for name, of in labels.items()},
        known=tuple(known),
        problem=watch.problem,
    )


def save_index(path: Path, index: ShardIndex) -> None:
    """Writes an index, atomically."""
    words = [index.names, dict(index.labels), index.known, index.problem]

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            text = np.frombuffer(json.dumps(words).encode(), np.uint8)
            np.savez(file, words=text, spans=index.spans, masks=index.masks)

    write_atomic(path, write)


def load_index(path: Path) -> ShardIndex | None:
    """Reads an index; None if there is none, or it is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            names, labels, known, problem = json.loads(file["words"].tobytes())
            of = {name: tuple(values) for name, values in labels.items()}
            return ShardIndex(tuple(names), file["spans"], file["masks"], of, tuple(known), problem)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


@dataclass
class _Watch:
    """Is told why a shard ends before it should."""

    problem: str = ""


def _samples(file: IO[bytes], watch: _Watch) -> Iterator[tuple[str, dict[str, Span]]]:
    current: str | None = None
    fields: dict[str, Span] = {}
    for name, span in _files(file, watch):
        found = _SAMPLE.fullmatch(name)
        if found is None:
            continue
        key, kind = found["key"], found["field"]
        if fields and (key != current or kind in fields):
            yield current or "", fields
            fields = {}
        current, fields[kind] = key, span
    if fields and not watch.problem:  # else the last sample may lack some of its files
        yield current or "", fields


def _files(file: IO[bytes], watch: _Watch) -> Iterator[tuple[str, Span]]:
    """Plain files of a tar, those of which nothing is missing."""
    end = file.seek(0, 2)
    file.seek(0)
    if end == 0:
        watch.problem = "is empty"
        return
    try:
        packed = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 -- the caller closes the file
        while (info := packed.next()) is not None:
            # Else it keeps them all.
            packed.members.clear()  # type: ignore[attr-defined]
            if info.offset_data + info.size > end:
                watch.problem = "is cut"
                return
            if info.isreg() and not info.issparse() and is_utf8(info.name):
                yield info.name, (info.offset_data, info.size)
        file.seek(packed.offset)
        last = file.read(_BLOCK)
    except (tarfile.TarError, ValueError) as error:  # ValueError: numbers that are none
        watch.problem = "is cut" if "unexpected end" in str(error) else f"is damaged: {error}"
        return
    # tarfile ends at what is no header without a word; a whole tar ends with zeros.
    if len(last) < _BLOCK:
        watch.problem = "is cut"
    elif any(last):
        watch.problem = f"is damaged after {packed.offset:,} bytes"


def _labels(
    file: IO[bytes], fields: Mapping[str, Span], wanted: tuple[str, ...], known: dict[str, None]
) -> Iterator[tuple[str, str]]:
    """What fields of these names hold, and what stands under them in JSON."""
    for name, (offset, size) in fields.items():
        is_json = name.endswith("json") and bool(wanted)
        if size > _LONGEST_LABEL or not (is_json or name.lower() in wanted or name in wanted):
            continue
        file.seek(offset)
        text = file.read(size).decode("utf-8", errors="replace")
        if not is_json:
            yield name, text.strip()
            continue
        try:
            found = json.loads(text)
        except ValueError:
            continue
        for key, value in found.items() if isinstance(found, dict) else ():
            known.setdefault(key)
            if (key in wanted or key.lower() in wanted) and (said := _label(value)) is not None:
                yield key, said


def _label(value: Any) -> str | None:
    """A value as it stands in a file of its own; None if it is no label.

    >>> _label(3), _label("cat"), _label(2.0), _label(None), _label([1])
    ('3', 'cat', '2', None, None)
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, str | int | float) else None


def _is_image(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in EXTENSIONS


def _is_array(name: str) -> bool:
    return f".{name.rpartition('.')[2].lower()}" in ARRAYS


def _is_meant(name: str, asked: str | None, mask: str | None) -> bool:
    """Whether a field holds the image, not the mask."""
    if asked is not None:
        return (_is_image(name) or _is_array(name)) and asked in (name, name.rpartition(".")[0])
    if mask not in (None, "none") and mask in (name, name.rpartition(".")[0]):
        return False
    return (_is_image(name) or _is_array(name)) and not _holds_masks(name.rpartition(".")[0])


def _is_mask(name: str, image: str, asked: str | None) -> bool:
    stem = name.rpartition(".")[0]
    if asked == "none" or name == image or not _is_image(name):
        return False
    return asked in (name, stem) if asked is not None else _holds_masks(stem)


def _holds_masks(stem: str) -> bool:
    return stem.lower() in ("seg", "semseg") or is_mask_word(stem)
