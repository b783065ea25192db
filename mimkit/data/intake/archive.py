"""Zip and tar archives of images, unpacked once into the cache."""

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Final

from mimkit.console import make_console
from mimkit.data.intake.kinds import advice, census
from mimkit.data.intake.sheet import KINDS
from mimkit.data.intake.walk import ARRAYS, EXTENSIONS, is_ignored
from mimkit.errors import DataError

_WANTED: Final = frozenset((*EXTENSIONS, *ARRAYS, *KINDS))
_IMAGES: Final = frozenset((*EXTENSIONS, *ARRAYS, ".parquet"))
Member = tuple[str, int, Callable[[], IO[bytes] | None]]
"""Name, size, and what opens it."""


def unpacked(archive: Path, cache: Path) -> Path:
    """Unpacks the images and tables of an archive, unless that was done before.

    Only plain files with a path inside the archive are taken: no link, no absolute path, none that
    leads upwards.

    Args:
        archive: zip or tar, compressed or not.
        cache: folder of everything cached.

    Returns: the folder that holds its files.
    Raises: DataError if it is damaged, encrypted, holds no image, or the disk is too small.
    """
    status = archive.stat()
    words = f"{archive.absolute()}\0{status.st_size}\0{status.st_mtime_ns}"
    place = cache / "unpacked" / hashlib.sha256(words.encode()).hexdigest()[:32]
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
    except OSError as error:
        raise _full(archive, place, error) from error
    try:
        with _members(archive) as members:
            _unpack(archive, list(members), partial)
        try:
            partial.rename(place)
        except OSError:
            if not place.is_dir():  # else another process was faster
                raise
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError) as error:
        raise DataError(
            f"{archive}: must be an archive that can be unpacked, but: {error}. If it is encrypted "
            "or damaged, unpack it yourself and give the folder."
        ) from error
    except OSError as error:
        raise _full(archive, place, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _full(archive: Path, place: Path, error: OSError) -> DataError:
    return DataError(
        f"{archive}: must be unpacked into {place.parent}, but: {error}. Name another folder with "
        "MIMKIT_CACHE, or unpack it yourself."
    )


def _unpack(archive: Path, members: list[Member], to: Path) -> None:
    wanted = [member for member in members if _is_wanted(member[0])]
    if not {PurePosixPath(name).suffix.lower() for name, _, _ in wanted} & _IMAGES:
        names = [name for name, _, _ in members]
        raise DataError(
            f"{archive}: must hold images or parquet files, but its {len(members):,} files are "
            f"{census(names) or 'none'}.{advice(names)}"
        )
    size, free = sum(size for _, size, _ in wanted), shutil.disk_usage(to).free
    if size > free:
        raise DataError(
            f"{archive}: its images take {size / 2**30:.1f} GiB, but the cache has only "
            f"{free / 2**30:.1f} GiB left. Name another folder with MIMKIT_CACHE."
        )
    make_console(stderr=True).print(
        f"unpacking {len(wanted):,} files ({size / 2**20:,.0f} MiB) of {archive} into the cache "
        "(once)",
        soft_wrap=True,
    )
    for name, declared, opened in wanted:
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = opened()
        assert source is not None  # only links are nothing
        with source, path.open("wb") as target:
            remaining = declared
            while chunk := source.read(min(remaining, 2**20)):
                target.write(chunk)
                remaining -= len(chunk)


def _is_wanted(name: str) -> bool:
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    return (
        inside
        and bool(path.parts)
        and not any(map(is_ignored, path.parts))
        and path.suffix.lower() in _WANTED
    )


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    """Plain files of an archive: their names, sizes, and how to open them."""
    with archive.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        with zipfile.ZipFile(archive) as zipped:
            yield (
                (info.filename, info.file_size, partial(zipped.open, info))
                for info in zipped.infolist()
                if not info.is_dir() and (info.external_attr >> 16) & 0o170000 in (0, 0o100000)
            )
    else:
        with tarfile.open(archive) as packed:
            yield (
                (info.name, info.size, partial(packed.extractfile, info))
                for info in packed
                if info.isreg()
            )
