"""The public weights of timm, from the Hugging Face Hub or its cache."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import timm
from timm.models import get_pretrained_cfg

from mimkit.errors import DataError, nearest

_FILES: Final = ("model.safetensors", "pytorch_model.bin")
_ANSWER_SECONDS: Final = 10
"""How long the Hub may take to answer before this machine counts as offline."""


class UnreachableError(DataError):
    """Weights that exist, but cannot be had now."""


@dataclass(frozen=True)
class Published:
    """What timm says of weights that it publishes.

    Args:
        name: model and tag.
        hub: id of the repository; "" if they lie elsewhere.
        license: of the weights.
        image: tables ``data`` of a recipe: size, mean, std and interpolation of the images.
    """

    name: str
    hub: str
    license: str
    image: dict[str, Any]


def published(name: str) -> Published:
    """Looks a name up in timm's own list, which needs no network.

    Raises: DataError if there is no such model, or no such weights of it.
    """
    known = timm.list_models()
    architecture, _, tag = name.partition(".")
    if architecture not in known:
        raise DataError(
            f"timm:{name}: must name a model of timm, but '{architecture}' is none."
            f'{nearest(architecture, known)} See: python -c "import timm; '
            "print(timm.list_pretrained('vit*'))\""
        )
    try:
        found = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        found = None
    if found is None:
        offered = timm.list_pretrained(f"{architecture}.*")
        raise DataError(
            f"timm:{name}: must name public weights of '{architecture}', but timm knows no "
            f"'{tag}'.{nearest(name, offered)} There are: {', '.join(offered) or 'none'}."
        )
    image: dict[str, Any] = {
        "image_size": list(found.input_size[1:]),
        "mean": list(found.mean),
        "std": list(found.std),
    }
    if found.interpolation in ("bilinear", "bicubic", "lanczos"):
        image["interpolation"] = found.interpolation
    return Published(
        name=f"{architecture}.{found.tag}" if found.tag else architecture,
        hub=found.hf_hub_id or "",
        license=found.license or "not stated",
        image=image,
    )


def download(weights: Published) -> Path:
    """Downloads weights, or finds an earlier download in the cache of the Hub.

    Raises: UnreachableError if they cannot be had.
    """
    # Slow to import, and only needed here.
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError  # noqa: PLC0415

    if not weights.hub:
        raise UnreachableError(
            f"timm:{weights.name}: must lie on the Hugging Face Hub, but timm names no place "
            f"there. Get the file and name it: timm:{weights.name}=FILE"
        )
    # The bases of the Hub's own error are what its HTTP client raises, whichever that is.
    failures: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
    reason = ""
    for file in _FILES:
        try:
            return Path(hf_hub_download(weights.hub, file, etag_timeout=_ANSWER_SECONDS))
        except EntryNotFoundError as error:  # maybe in the other form; offline it says so too
            reason = reason or str(error)
        except failures as error:
            reason = str(error)
            break
    said = " ".join(reason.split())[:200]
    raise UnreachableError(
        f"timm:{weights.name}: the weights could not be had from the Hugging Face Hub "
        f"({weights.hub}: {said}). Repeat the command with a network, or download "
        f"model.safetensors of {weights.hub} elsewhere and name it: timm:{weights.name}=FILE"
    )
