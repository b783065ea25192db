"""Downloading a data set from the Hugging Face Hub."""

import re
from pathlib import Path
from typing import Final

from mimkit.data.intake.sheet import METADATA
from mimkit.data.intake.walk import ARRAYS, EXTENSIONS
from mimkit.data.registered import DataSet

_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
_ANSWER_SECONDS: Final = 10
"""How long the Hub may take to answer before this machine counts as offline."""


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a data set on the Hub: USER/NAME."""
    return bool(_HUB_ID.fullmatch(name))


def download(hub: str, dataset: DataSet | None) -> tuple[Path | None, str]:
    """Downloads the parquet files and images of a data set, or finds an earlier download.

    Args:
        hub: its id.
        dataset: what is registered of it: then only the files of its splits are fetched.

    Returns: the folder; or None, and why there is none.
    """
    # Slow to import, and only needed here.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError  # noqa: PLC0415

    if dataset is None:
        patterns = ["*.parquet", *METADATA, *(f"*/{name}" for name in METADATA)]
        patterns += [f"*{extension}" for extension in (*EXTENSIONS, *ARRAYS)]
    else:
        words = [word for split in dataset.splits.values() for word in split]
        patterns = [f"*/{word}-*.parquet" for word in words]
    # The bases of the Hub's own error are what its HTTP client raises, whichever that is.
    failures: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
    try:
        # Offline, this answers at once with what an earlier download left.
        folder = snapshot_download(
            hub, repo_type="dataset", allow_patterns=patterns, etag_timeout=_ANSWER_SECONDS
        )
    except GatedRepoError:
        page = f"https://huggingface.co/datasets/{hub}"
        return None, f"its owner asks you to accept terms at {page}, then to run: hf auth login"
    except failures as error:
        return None, f"the Hugging Face Hub did not give '{hub}' ({str(error).splitlines()[0]})"
    return Path(folder), ""
