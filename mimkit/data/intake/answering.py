"""What servers and buckets answer, in words: not there, not allowed, not reached."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mimkit.errors import DataError, in_one_line

_OF_THIS_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_CREDENTIALS: Final = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "gcloud auth application-default login",
    "hf": "hf auth login, and the terms of the data set accepted on its page",
}
_ADDRESSES: Final = {
    "s3": " A server of your own is named by AWS_ENDPOINT_URL.",
    "hf": " Another server is named by HF_ENDPOINT.",
}
_GONE: Final = (404, 410)
_UNREACHED: Final = ("Connector", "ConnectError", "ConnectTimeout", "EndpointConn", "Refused")
"""Clients share no base, but call what they raise alike."""


@contextmanager
def answering(url: str) -> Iterator[None]:
    """Says in words what a server or its client has against reading.

    Raises: DataError instead of anything raised inside, but for what this machine's disk refuses.
    """
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"{url}: must be read through a package that is not installed ({error.name or error}): "
            "pip install 'mimkit[remote]'. For Google Cloud also: pip install gcsfs."
        ) from error
    except FileNotFoundError as error:
        raise DataError(
            f"{url}: must be a file, a folder or a pattern of files, but is not there. To see "
            "what is: fsspec.filesystem(PROTOCOL).ls(PATH) in Python."
        ) from error
    except Exception as error:  # each file system raises what its client raises
        if isinstance(error, OSError) and error.errno in _OF_THIS_DISK:
            raise  # of the copy, not of what is copied
        raise DataError(_told(url, error)) from error


def is_forbidden(error: BaseException) -> bool:
    """Whether a server refuses because of who asks.

    >>> is_forbidden(PermissionError("Access Denied"))
    True
    """
    # Clients say by name what they lack.
    lacking = "Credentials" in type(error).__name__
    return lacking or isinstance(error, PermissionError) or _status(error) in (401, 403)


def is_missing(error: BaseException) -> bool:
    """Whether a server says that there is no such file.

    fsspec says so of whatever a web server answers, and of one that does not, and keeps what its
    client (aiohttp) said as the cause.

    >>> is_missing(FileNotFoundError("a.tar"))
    True
    """
    if not isinstance(error, FileNotFoundError):
        return _status(error) in _GONE
    cause = error.__cause__
    return not type(cause).__module__.startswith("aiohttp") or _status(cause) in _GONE


def _status(error: BaseException | None) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code"):
            if isinstance(found := getattr(holder, name, None), int):
                return found
    return None


def _told(url: str, error: Exception) -> str:
    protocol, why = url.partition("://")[0].lower(), in_one_line(error)
    goes_on = "What was fetched is kept: to go on, repeat the command."
    if is_forbidden(error):
        how = _CREDENTIALS.get(protocol, "as the server wants it, such as in the address")
        return f"{url}: may not be read: {why}. It wants other credentials: {how}. {goes_on}"
    if any(word in type(error).__name__ for word in _UNREACHED):
        other = _ADDRESSES.get(protocol, "")
        return (
            f"{url}: cannot be reached: {why}. Is there a network, and is the address "
            f"right?{other} {goes_on}"
        )
    return f"{url}: cannot be read: {why}. Are credentials and address right? {goes_on}"
