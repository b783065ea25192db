"""What goes wrong, in words a user can act on; the command line exits with 2 on any of these."""

import difflib
from collections.abc import Iterable


class MimkitError(Exception):
    """Base of all errors that a user can mend. Its text is one complete message.

    >>> try:
    ...     raise RecipeError("recipe.toml:3, lr: must be above 0, but is -1.")
    ... except MimkitError as error:
    ...     print(error)
    recipe.toml:3, lr: must be above 0, but is -1.
    """


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{match[0]}'?" if match else ""
