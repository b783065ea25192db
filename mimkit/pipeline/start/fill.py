"""Putting weights from elsewhere into an encoder, and saying what became of each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from mimkit.errors import DataError, MimkitError
from mimkit.parts.encoder import Encoder
from mimkit.parts.fitting import misfits
from mimkit.parts.records import Grid
from mimkit.parts.state_dicts import COMPANIONS, listed, unwrap

_LARGEST_PART: Final = 0.1
"""Of an encoder that may be new, or of a file's body that may be left out: more is another one."""


@dataclass(frozen=True)
class Filled:
    """What became of the weights of one part, by name.

    Args:
        loaded: how many tensors were taken, resampled ones among them.
        resampled: those that were brought to another grid.
        new: of the part, not in the file: as the seed drew them.
        left_out: of the file, with no place in the part.
    """

    loaded: int
    resampled: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"{self.loaded} tensors loaded"]
        for name in ("resampled", "new", "left_out"):
            if held := getattr(self, name):
                words.append(f"{name.replace('_', ' ')}: {listed(list(held))}")
        return "; ".join(words)


def fill_encoder(
    encoder: Encoder, tensors: Mapping[str, Tensor], source: str, grids: tuple[Grid | None, Grid]
) -> Filled:
    """Loads weights into an encoder, as far as they have a place there.

    Names count as `mimkit.unwrap` leaves them, so that a model in a wrapper is the model.

    Args:
        encoder: gets the weights.
        tensors: state dict.
        source: for messages.
        grids: that the weights were trained for, if it is known; that of the encoder.

    Raises: DataError if they are those of another encoder.
    """
    own = encoder.state_dict()
    places = dict(zip(unwrap(own, Path(source)).tensors, own, strict=True))
    bare = unwrap(tensors, Path(source)).tensors
    found = {places[name]: tensor for name, tensor in bare.items() if name in places}
    left_out = [name for name in bare if name not in places]
    theirs, mine = grids
    moved = found
    if theirs is not None and theirs != mine:
        try:
            moved = dict(encoder.regrid(found, theirs))
        except MimkitError as error:
            raise DataError(f"{source}: {error}") from error
    if wrong := misfits(moved, own):
        raise DataError(
            f"{source}: its weights must fit the encoder, but {listed(wrong)}. Give [encoder] the "
            "options, and [data] the patches, that the weights were trained with."
        )
    parameters = dict(encoder.named_parameters())
    new = [name for name in parameters if name not in moved]
    _refuse_another(source, moved, parameters, new, {n: bare[n] for n in left_out})
    encoder.load_state_dict(moved, strict=False)
    resampled = [name for name, tensor in moved.items() if tensor is not found[name]]
    return Filled(len(moved), tuple(resampled), tuple(new), tuple(left_out))


def fill_exactly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, name: str
) -> Filled:
    """Loads weights into another part, which they must fit.

    Raises: DataError if there are none, or they do not.
    """
    own = module.state_dict()
    wrong = misfits(tensors, own) + [f"{key} lacks" for key in own if key not in tensors]
    if wrong:
        raise DataError(
            f"{source}: its {name} must fit the recipe's, but {listed(wrong)}. Leave it out of "
            "train.start_parts, so that it starts anew."
        )
    module.load_state_dict(dict(tensors))
    return Filled(len(own))


def _refuse_another(
    source: str,
    moved: Collection[str],
    parameters: Mapping[str, Tensor],
    new: Collection[str],
    left_out: Mapping[str, Tensor],
) -> None:
    """Refuses weights that only share some names with an encoder, such as those of another depth.

    Raises: DataError that names what lacks.
    """
    lacking = sum(parameters[name].numel() for name in new)
    whole = sum(parameter.numel() for parameter in parameters.values())
    body = {n: t for n, t in left_out.items() if not n.startswith(COMPANIONS)}
    over = sum(tensor.numel() for tensor in body.values())
    if not moved or lacking > _LARGEST_PART * whole:
        raise DataError(
            f"{source}: must hold the weights of this encoder, but "
            f"{len(new)} of its {len(parameters)} are not there: {listed(list(new))}. Its own are "
            f"called {listed(list(left_out)) or 'alike'}. Give [encoder] the part and the options "
            "that the weights were trained with, or name other weights."
        )
    if over > _LARGEST_PART * whole:
        raise DataError(
            f"{source}: must hold the weights of this encoder alone, but also holds "
            f"{listed(list(body))}, as of a deeper one. Give [encoder] the part and the options "
            "that the weights were trained with, or name other weights."
        )
