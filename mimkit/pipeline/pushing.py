"""A run's encoder on the Hugging Face Hub, with a card that is written from its results."""

import re
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from rich.console import Console

from mimkit.console import headed
from mimkit.errors import DataError, RecipeError, in_one_line
from mimkit.export.timm import CONFIG, WEIGHTS, TransformersExporter
from mimkit.files import make_folder, write_text
from mimkit.folder import RunFolder
from mimkit.ownership import kind_of
from mimkit.pipeline.exporting import (
    load_exportable,
    refuse_impossible,
    refuse_taken,
    verified,
)
from mimkit.report.model_card import Subject, model_card

CARD: Final = "README.md"
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EMPTY: Final = {".gitattributes", CARD}
"""What the Hub may put into a repository that it makes."""
_TAKEN, _UNKNOWN, _FORBIDDEN = 409, 401, 403


def push_run(
    run: Path,
    to: str | None,
    out: Path | None,
    *,
    license_: str,
    private: bool,
    console: Console,
) -> None:
    """Writes the folder that the Hub shows, timm and transformers load, and uploads it.

    Args:
        run: the run folder.
        to: ``user/name`` on the Hub; may be None if only a folder is written.
        out: write this folder, which must be new or empty, and upload nothing; None for ``hub`` in
            the run folder, and an upload.
        license_: of the weights, as the Hub names it.
        private: make a repository that only its owners see.
        console: where to say what was done.

    Raises: RecipeError if the name is none, or timm has no such model; DataError if a file is in
        the way, or the Hub does not take it: the folder is then kept.
    """
    if to is None and out is None:
        raise RecipeError(
            "mimkit push: must know where to. Give --to USER/NAME, or --out FOLDER to write the "
            "folder only."
        )
    if to is not None and not _NAME.fullmatch(to):
        raise RecipeError(
            f"--to {to}: must be USER/NAME, letters, digits and -_. on both sides, as in "
            "--to ann/leaves-vit."
        )
    folder = out or run / "hub"
    if out is not None or kind_of(run) != "run":
        refuse_taken(folder, "")
    source = load_exportable(run, license_)
    exporter = TransformersExporter()
    refuse_impossible(source, "transformers", exporter)
    make_folder(folder)
    exporter.write(source, folder)
    how = verified(source, exporter, folder)
    subject = Subject(source.encoder.embed_dim, source.view, source.channels)
    where = f"hf-hub:{to}" if to else f"local-dir:{folder}"
    write_text(folder / CARD, model_card(RunFolder(run), subject, where, license_))
    console.print(headed("wrote", f"{folder}{how}"), soft_wrap=True)
    if out is not None:
        console.print(f"To try it: timm.create_model('local-dir:{folder}', pretrained=True)")
        console.print(f"To upload it: hf upload {to or 'USER/NAME'} {folder}", soft_wrap=True)
        return
    assert to is not None, "else there is a folder to write"
    console.print(headed("uploaded", _upload(to, folder, private)), soft_wrap=True)
    console.print(f"To load it: timm.create_model('hf-hub:{to}', pretrained=True)", soft_wrap=True)


def _upload(to: str, folder: Path, private: bool) -> str:
    """Makes the repository and puts the files there, in one commit; returns its address.

    Raises: DataError if the Hub cannot be reached or refuses.
    """
    kept = f"{folder} is kept"
    try:
        api = HfApi()
        try:
            api.create_repo(to, private=private or None)
        except HfHubHTTPError as error:
            if error.response.status_code != _TAKEN:
                raise
            # One that an upload was broken off for is still empty, and is filled now.
            if not set(api.list_repo_files(to)) <= _EMPTY:
                raise DataError(
                    f"{to}: exists on the Hub already, and nothing was changed in it. {kept}. Give "
                    f"another name with --to, or add it to that one: hf upload {to} {folder}"
                ) from error
        done = api.upload_folder(
            repo_id=to,
            folder_path=folder,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
            commit_message="Encoder and model card, by mimkit push",
        )
    except DataError:
        raise
    except HfHubHTTPError as error:
        raise DataError(f"{to}: {_refused(error)} {kept}.") from error
    except Exception as error:  # of the network, of whatever library the Hub's client uses
        raise DataError(
            f"{to}: the Hub cannot be reached ({in_one_line(error)}). {kept}. Repeat the same "
            f"command where there is a network, or there: hf upload {to} {folder}"
        ) from error
    return str(done.repo_url)


def _refused(error: HfHubHTTPError) -> str:
    code = error.response.status_code
    if code == _UNKNOWN:
        return (
            "the Hub does not know who you are (401). Log in with hf auth login, or set HF_TOKEN "
            "to a token that may write; then repeat the same command."
        )
    if code == _FORBIDDEN:
        return (
            "your token may not write there (403). Make one that may at "
            "https://huggingface.co/settings/tokens, and log in with it: hf auth login."
        )
    return f"the Hub refused it ({in_one_line(error)})."
