"""What ``--from`` and ``--against`` name: a run, a file, or public weights of timm."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mimkit.errors import DataError
from mimkit.files import sha256
from mimkit.folder import RunFolder
from mimkit.parts.checkpoints import read_checkpoint
from mimkit.parts.encoder import Encoder
from mimkit.parts.importer import Imported, Importer
from mimkit.parts.records import Grid
from mimkit.pipeline.judgement import refuse_unfinished
from mimkit.pipeline.start.hub import download, published
from mimkit.recipe import registry
from mimkit.train.encoder_file import read_record

_TIMM: Final = "timm:"
_UNSTATED: Final = "not stated"


@dataclass(frozen=True)
class Weights:
    """Weights of an encoder, with what is known of them.

    Args:
        source: as the user named it.
        file: that holds them.
        sha256: of the file.
        encoder: state dict, under the names of the part in ``settings`` if there is one.
        settings: tables of a recipe that go with them: ``encoder`` with its options; of ``data``
            size, patches and normalisation. Without ``encoder``, nobody knows the network.
        recipe: file or name of the recipe that gives the remaining tables; "" if any will do.
        license: of the weights.
        head: state dict of the head that was trained with it.
        run: folder of the run that trained it.
        notes: what the user should know, a line each.
    """

    source: str
    file: Path
    sha256: str
    encoder: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    recipe: str = ""
    license: str = _UNSTATED
    head: Mapping[str, Tensor] = field(default_factory=dict)
    run: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid | None:
        """That they were trained for, if it is known."""
        data = self.settings.get("data", {})
        if not {"image_size", "patch_size"} <= data.keys():
            return None
        rows, cols = (side // data["patch_size"] for side in data["image_size"])
        return Grid(rows, cols, data["patch_size"])


def find_weights(source: str, wanted: type[Encoder] | None = None) -> Weights:
    """Finds weights and reads them, without running any code that a file may hold.

    Args:
        source: a run folder, a file, ``timm:ID`` or ``timm:MODEL=FILE``.
        wanted: class of the encoder that they are for; of several readings of a file the one for
            it is taken.

    Raises: DataError that says what is wrong; UnreachableError if public weights cannot be had now.
    """
    if source.startswith(_TIMM):
        return _of_timm(source)
    path = Path(source)
    if path.is_dir():
        return _of_run(source, path)
    if not path.is_file():
        raise DataError(
            f"{source}: must be a run folder, a file of weights or timm:ID, but there is no such "
            'file. See what there is: ls runs/*/*; python -c "import timm; '
            "print(timm.list_pretrained('vit*'))\""
        )
    about = _beside(path)
    if "part" in about:
        return _exported(source, path, about)
    return _foreign(source, path, wanted)


def _of_timm(source: str) -> Weights:
    """``timm:ID``, or a file of which timm knows the model."""
    name, _, given = source.removeprefix(_TIMM).partition("=")
    known = published(name)
    if given and not Path(given).is_file():
        raise DataError(f"{source}: must name a file of weights, but there is no {given}.")
    file = Path(given) if given else download(known)
    read = read_checkpoint(file)
    patches = read.tensors.get("patch_embed.proj.weight")
    # Of a ResNet a cell of its last map, or a part of one where these do not divide the image.
    data = {**known.image, "patch_size": math.gcd(32, *known.image["image_size"])}
    if patches is not None and patches.ndim == 4:
        data["patch_size"] = int(patches.shape[-1])
    encoder = {"part": "timm", "model": known.name}
    return Weights(
        source=source,
        file=file,
        sha256=sha256(file),
        encoder=read.tensors,
        settings={"data": data, "encoder": encoder},
        recipe="timm_in224",
        license=known.license,
        notes=read.notes,
    )


def _of_run(source: str, path: Path) -> Weights:
    run = RunFolder(path)
    refuse_unfinished(run)
    record = read_record(path)
    file = path / "encoder.safetensors"
    return Weights(
        source=source,
        file=file,
        sha256=sha256(file),
        encoder=_load(file),
        settings=_settings(record),
        recipe=str(run.recipe),
        license="your own",
        run=path,
    )


def _exported(source: str, path: Path, about: Mapping[str, Any]) -> Weights:
    """What ``mimkit export --format safetensors`` wrote."""
    return Weights(
        source=source,
        file=path,
        sha256=sha256(path),
        encoder=_load(path),
        settings=_settings(about),
        license=str(about.get("license", _UNSTATED)),
    )


def _foreign(source: str, path: Path, wanted: type[Encoder] | None) -> Weights:
    """A file of another project, as the importers read it; the names in it if none does."""
    read = read_checkpoint(path)
    found = list(_imported(path))
    chosen = next(((i, f) for i, f, cls in found if cls is wanted), None)
    if chosen is None and wanted is None and found:
        chosen = found[0][:2]
    about = _beside(path)
    view = {k: about[k] for k in ("mean", "std", "interpolation") if k in about}
    license_ = str(about.get("license", _UNSTATED))
    if chosen is None:
        data = found[0][1].settings.get("data", {}) if found else {}
        settings = {"data": {**data, **view}}
        return Weights(
            source, path, sha256(path), read.tensors, settings, license=license_, notes=read.notes
        )
    importer, imported = chosen
    settings = {**imported.settings, "data": {**imported.settings.get("data", {}), **view}}
    return Weights(
        source=source,
        file=path,
        sha256=sha256(path),
        encoder=imported.encoder,
        settings=settings,
        recipe=importer.recipe,
        license=license_,
        head=imported.head,
        notes=imported.notes,
    )


def _imported(path: Path) -> Iterator[tuple[type[Importer], Imported, object]]:
    """Yields what each importer makes of a file that it can read, those of the core first."""
    known = registry.entries("importers")
    for entry in sorted(known, key=lambda each: each.distribution != "mimkit"):
        try:
            importer = cast(type[Importer], registry.load(entry))
            found = importer().read(path)
            part = registry.find("encoders", found.settings["encoder"]["part"])
            yield importer, found, registry.load(part)
        except Exception:  # of a plugin that nobody asked for: it may fail in any way
            continue


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Reads what mimkit writes beside an encoder as tables of a recipe."""
    grid = Grid(**record["grid"])
    part = f"{record['distribution']}:{record['part'].split(':')[-1]}"
    options = {k: "none" if v is None else v for k, v in record["options"].items()}
    return {
        "data": {
            "image_size": list(grid.image_size),
            "patch_size": grid.patch_size,
            "mean": record["mean"],
            "std": record["std"],
            "interpolation": record["interpolation"],
        },
        "encoder": {"part": part, **options},
    }


def _beside(path: Path) -> dict[str, Any]:
    """Reads the JSON file beside weights, as ``mimkit export`` leaves it; empty if it is none."""
    try:
        found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: must be a file of safetensors, but is damaged or cut off ({error}). Copy or "
            "export it again."
        ) from error
