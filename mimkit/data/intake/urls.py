"""Files in buckets and on servers, through fsspec: what is there, and their bytes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mimkit.data.intake.answering import answering, is_forbidden, is_missing
from mimkit.data.intake.table import Skipped
from mimkit.errors import DataError, nearest

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_T = TypeVar("_T")
_URL: Final = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MAGIC: Final = re.compile(r"[*?\[]")
_MOST: Final = 1_000_000
"""A pattern stands for no more files."""
_AT_ONCE: Final = 16
_SHOWN: Final = 5
_TRIES: Final = 5
_FIRST_WAIT_SECONDS: Final = 0.5
_VERSIONS: Final = (
    *("ETag", "etag", "checksum", "crc32c", "md5Hash", "generation", "blob_id", "xet_hash"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "created", "updated"),
)
"""What file systems say of a file that changes when it does."""


@dataclass(frozen=True)
class ShardFile:
    """A file of many images.

    Args:
        url: its path, or its address with a protocol.
        size: in bytes; -1 where a server does not say it.
        stamp: changes when the file does.
    """

    url: str
    size: int
    stamp: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return not is_url(self.url)


def is_url(name: str) -> bool:
    """Whether a name is the address of something elsewhere.

    >>> is_url("s3://bucket/a.tar"), is_url("data/a.tar")
    (True, False)
    """
    return _URL.match(name) is not None


def braces(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, as shells and WebDataset have them.

    >>> braces("{train,val}-{08..10}.tar")[1:4]
    ['train-09.tar', 'train-10.tar', 'val-08.tar']

    Raises: DataError if braces do not match, or stand for too many names.
    """
    pieces = re.split(r"\{([^{}]*)\}", pattern)
    if any(brace in piece for piece in pieces for brace in "{}"):
        raise DataError(
            f"{pattern}: braces must come in pairs that hold a range or names, as in "
            "'train-{000..099}.tar'."
        )
    choices = [[piece] for piece in pieces]
    for number in range(1, len(pieces), 2):
        span = _RANGE.fullmatch(pieces[number])
        if span is None:
            choices[number] = pieces[number].split(",")
            continue
        first, last = int(span[1]), int(span[2])
        if last - first >= _MOST:
            raise DataError(f"{pattern}: must stand for at most {_MOST:,} files.")
        width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
        choices[number] = [f"{each:0{width}}" for each in range(first, last + 1)]
    return ["".join(each) for each in itertools.product(*choices)]


def find(url: str, kinds: Sequence[str]) -> tuple[list[ShardFile], list[Skipped]]:
    """Finds the files that an address names: a file, a pattern, or a folder of files.

    Args:
        url: with a protocol; braces and stars are patterns.
        kinds: endings of the files that are wanted of a folder.

    Returns: the files, by name; and those that braces name and that are not there.
    Raises: DataError if it cannot be listed, or the package for its protocol is missing.
    """
    with answering(url):
        magic = _MAGIC.search(url) is not None
        if "{" in url or (url.lower().endswith(tuple(kinds)) and not magic):
            each = braces(url)
            _file_system(each[0])[0].invalidate_cache()  # what was listed before in this process
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = dict(zip(each, pool.map(_one, each), strict=True))
            missing = [
                Skipped(_full(name), "is missing") for name, file in found.items() if file is None
            ]
            files = [file for file in found.values() if file is not None]
            return (files, missing) if files else ([], [])
        fs, path = _file_system(url)
        fs.invalidate_cache()
        if magic:
            details = again(lambda: fs.glob(path, detail=True))
        else:
            details = again(lambda: fs.find(path.rstrip("/"), maxdepth=2, detail=True))
        files = [
            _shard(fs, name, info)
            for name, info in sorted(details.items())
            if name.lower().endswith(tuple(kinds))
        ]
        return files, []


def download(file: ShardFile, to: Path) -> None:
    """Fetches a whole file.

    Raises: OSError or what the file system raises; EOFError if it is not as long as it was.
    """
    fs, path = _file_system(file.url)
    fs.get_file(path, str(to))
    if file.size not in (-1, came := to.stat().st_size):
        raise EOFError(f"{came:,} bytes came of {file.size:,}")


def read_text(url: str) -> str | None:
    """Reads a small file that may lie beside others, here or elsewhere; None if there is none.

    Raises: DataError if it cannot be read.
    """
    if not is_url(url):
        return Path(url).read_text(encoding="utf-8-sig") if Path(url).is_file() else None
    with answering(url):
        fs, path = _file_system(url)
        try:
            content: bytes = again(lambda: fs.cat_file(path))
            return content.decode("utf-8-sig")
        except Exception as error:
            # Who may not list a bucket is not told that a file is missing, but that it is not his.
            if is_missing(error) or is_forbidden(error):
                return None
            raise


def arrow_file_system(url: str) -> tuple[Any, str]:
    """The file system of an address, as pyarrow takes it, and the path in it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem  # noqa: PLC0415 -- slow to import

    fs, path = _file_system(url)
    return PyFileSystem(FSSpecHandler(fs)), path


def again(do: Callable[[], _T]) -> _T:
    """Does something over a network, and again after a while where it fails, five times in all."""
    import tenacity  # noqa: PLC0415 -- in the extra

    for attempt in tenacity.Retrying(
        stop=tenacity.stop_after_attempt(_TRIES),
        wait=tenacity.wait_random_exponential(_FIRST_WAIT_SECONDS, max=30),
        retry=tenacity.retry_if_exception(_may_go_by),
        reraise=True,
    ):
        with attempt:
            return do()
    raise AssertionError  # the last attempt raises


def _may_go_by(error: BaseException) -> bool:
    never = (FileNotFoundError, ImportError, DataError, NotImplementedError)
    return isinstance(error, Exception) and not isinstance(error, never) and not is_forbidden(error)


def _file_system(url: str) -> tuple[AbstractFileSystem, str]:
    # Asked for anew each time: fsspec keeps one of each per process, and another after a fork.
    import fsspec  # noqa: PLC0415 -- slow to import
    import tenacity  # noqa: F401, PLC0415 -- so that one message covers the whole extra

    found = _URL.match(url)
    assert found is not None
    known = fsspec.available_protocols()
    if found["protocol"] not in known:
        raise DataError(
            f"{url}: must begin with a protocol that fsspec knows, such as s3://, gs://, hf:// or "
            f"https://.{nearest(found['protocol'], known)}"
        )
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def _full(url: str) -> str:
    """An address as the file system writes it."""
    fs, path = _file_system(url)
    return str(fs.unstrip_protocol(path))


def _one(url: str) -> ShardFile | None:
    fs, path = _file_system(url)

    def look() -> ShardFile | None:
        try:
            return _shard(fs, path, fs.info(path))
        except FileNotFoundError as error:
            if is_missing(error):
                return None
            raise error.__cause__ or error from None

    return again(look)


def nearest_there(url: str) -> str:
    """Says what there is of an address at which no file was found, in one sentence.

    Raises: DataError if that cannot be listed.
    """
    with answering(url):
        fs, path = _file_system(braces(url)[0] if "{" in url else url)
        names = path.strip("/").split("/")
        if "http" in fs.protocol or not names[0]:
            return "The server has no such file."
        for depth in range(len(names), 0, -1):
            parent = "/".join(names[:depth])
            try:
                found = again(partial(fs.ls, parent, detail=False))
            except FileNotFoundError:
                continue
            inside = [str(each).rstrip("/").rpartition("/")[2] for each in found]
            if not inside and depth > 1:
                continue
            next_ = names[depth] if depth < len(names) else ""
            held = ", ".join(inside[:_SHOWN]) + ", ..." * (len(inside) > _SHOWN) or "nothing"
            return f"{fs.unstrip_protocol(parent)} holds {held}.{nearest(next_, inside)}"
        return f"Not even {fs.unstrip_protocol(names[0])} is there."


def _shard(fs: AbstractFileSystem, path: str, info: dict[str, Any]) -> ShardFile:
    size = info.get("size")
    said = [f"{key}={info[key]}" for key in _VERSIONS if info.get(key) is not None]
    return ShardFile(
        str(fs.unstrip_protocol(path)), -1 if size is None else int(size), ";".join(said)
    )


def local_file(path: Path) -> ShardFile:
    """A file of this machine.

    Raises: OSError.
    """
    status = path.stat()
    return ShardFile(str(path.absolute()), status.st_size, str(status.st_mtime_ns))
