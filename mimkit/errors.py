"""What goes wrong, in words a user can act on; the command line exits with 2 on any of these."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final


class MimkitError(Exception):
    """Base of all errors that a user can mend. Its text is one complete message.

    ``exit_code`` is what the command line then ends with.

    >>> try:
    ...     raise RecipeError("recipe.toml:3, lr: must be above 0, but is -1.")
    ... except MimkitError as error:
    ...     print(error)
    recipe.toml:3, lr: must be above 0, but is -1.
    """

    exit_code: ClassVar[int] = 2


class RecipeError(MimkitError):
    """A recipe, or an option of a part, does not hold.

    >>> issubclass(RecipeError, MimkitError)
    True
    """


class PluginError(MimkitError):
    """A registered part is missing, ambiguous, fails to load or breaks the contract.

    >>> issubclass(PluginError, MimkitError)
    True
    """


class DataError(MimkitError):
    """Images, labels, weights or a run folder are missing or unreadable.

    >>> issubclass(DataError, MimkitError)
    True
    """


class BoundaryError(MimkitError):
    """A part returned a tensor of another shape or dtype than the contract says.

    >>> raise BoundaryError("head 'x' gives (2, 3); it must be (B=2, G=1).")
    Traceback (most recent call last):
    mimkit.errors.BoundaryError: head 'x' gives (2, 3); it must be (B=2, G=1).
    """


class TrainingError(MimkitError):
    """Training cannot go on: the loss stays non-finite, or the disk is full.

    >>> issubclass(TrainingError, MimkitError)
    True
    """


class ProcessLostError(TrainingError):
    """Another process of this run is no longer there: of the two it is that one's end to look at.

    >>> ProcessLostError.exit_code  # EX_TEMPFAIL of sysexits.h: the same command may well succeed
    75
    """

    exit_code = 75


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""


_ADVICE: Final = {
    errno.EACCES: "Choose a place where you may write and read, or change its permissions.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.ENOSPC: "Free some space, then repeat the command.",
    errno.EDQUOT: "Free some space, then repeat the command.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOTDIR: "A file is where a folder must be. Choose another place.",
    errno.EEXIST: "A file is where a folder must be. Choose another place.",
    errno.EISDIR: "A folder is where a file must be.",
}
_NO_MEMORY: Final = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough",
)
_LONGEST_PATH: Final = 300
_LONGEST_ERROR: Final = 300


@contextmanager
def mendable() -> Iterator[None]:
    """Puts what the system refuses, a file or memory, into words; also a decorator.

    >>> with mendable():
    ...     open("nowhere/at-all")
    Traceback (most recent call last):
    mimkit.errors.DataError: nowhere/at-all: No such file or directory.

    Raises: DataError for files, TrainingError where memory is full.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed any more: no error of a file
        raise
    except OSError as error:
        raise DataError(_of_system(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        raise TrainingError(
            f"memory is full: {in_one_line(error)}. Give a smaller train.batch_size, more pieces "
            "in train.accumulate, or a smaller encoder; mimkit check RECIPE counts its parameters."
        ) from error


def memory_is_full(error: BaseException) -> bool:
    """Whether an error says that no more memory can be had, of a GPU or of the machine.

    >>> memory_is_full(MemoryError())
    True
    """
    # By name, for a GPU's is torch's own and on the CPU torch raises a RuntimeError.
    names = {cls.__name__ for cls in type(error).__mro__}
    full = bool(names & {"MemoryError", "OutOfMemoryError"})
    return full or any(words in str(error) for words in _NO_MEMORY)


def in_one_line(error: BaseException) -> str:
    """Returns what an error says, without its line breaks and what is far too long.

    >>> in_one_line(ValueError("one   two"))
    'ValueError: one two'
    """
    words = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".:")
    return words if len(words) <= _LONGEST_ERROR else f"{words[:_LONGEST_ERROR]}..."


def _of_system(error: OSError) -> str:
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = " -> ".join(
        name if len(name) <= _LONGEST_PATH else f"{name[:_LONGEST_PATH]}..." for name in files
    )
    what = error.strerror or " ".join(str(error).split()) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0, "")
    return " ".join(filter(None, (f"{where}:" if where else "", f"{what.rstrip('.')}.", advice)))
