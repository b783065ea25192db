"""How a run begins that does not begin with random weights."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimkit.errors import DataError
from mimkit.files import sha256
from mimkit.folder import RunFolder
from mimkit.parts.encoder import Encoder
from mimkit.parts.records import Grid, View
from mimkit.pipeline.start.fill import Filled, fill_encoder, fill_exactly
from mimkit.pipeline.start.weights import Weights, find_weights
from mimkit.recipe.build import Parts
from mimkit.recipe.document import parse
from mimkit.recipe.schema import Recipe
from mimkit.recipe.tables import last_of
from mimkit.train import checkpoint
from mimkit.train.checkpoint import Saved
from mimkit.train.distributed import World
from mimkit.train.step import Pretrainer


class Start:
    """Weights on their way into the parts of a run.

    Args:
        weights: what was found.
        wanted: ``train.start_parts``.
    """

    def __init__(self, weights: Weights, wanted: tuple[str, ...]) -> None:
        self.weights = weights
        self.wanted = wanted
        self.filled: dict[str, Filled] = {}

    def encoder(self, encoder: Encoder, grid: Grid) -> None:
        """Gives an encoder its first weights, before targets make teachers of it."""
        if "encoder" in self.wanted:
            self.filled["encoder"] = fill_encoder(
                encoder, self.weights.encoder, self.weights.source, (self.weights.grid, grid)
            )

    def others(self, parts: Parts) -> None:
        """Gives head and targets theirs."""
        source = self.weights.source
        if "head" in self.wanted:
            tensors = self.weights.head or self._saved("model.head.")
            self.filled["head"] = fill_exactly(parts.head, tensors, source, "head")
        if "targets" in self.wanted:
            module = torch.nn.ModuleDict(parts.targets)
            tensors = self._saved("model.targets.")
            self.filled["targets"] = fill_exactly(module, tensors, source, "targets")

    def optimizer(self, pretrainer: Pretrainer, optimizer: torch.optim.Optimizer) -> list[str]:
        """Gives the optimizer the state that it ended with there, and says for people how much.

        Raises: DataError if there is none for any of the parameters.
        """
        if "optimizer" not in self.wanted:
            return []
        found = checkpoint.restore_optimizer(self._checkpoint(), pretrainer, optimizer)
        if not found:
            raise DataError(
                f"{self.weights.source}: its checkpoint must hold the state of this optimizer, but "
                "holds none of it. Leave 'optimizer' out of train.start_parts."
            )
        self.filled["optimizer"] = Filled(found)
        return [f"  optimizer: state of {found} weights loaded"]

    @property
    def record(self) -> dict[str, Any]:
        """What the ledger keeps of it."""
        weights = self.weights
        return {
            "source": weights.source,
            "file": str(weights.file),
            "sha256": weights.sha256,
            "license": weights.license,
            **{name: asdict(found) for name, found in self.filled.items()},
        }

    def lines(self, view: View) -> list[str]:
        """Says for people what was taken, and what not; ``view`` is what the encoder will see."""
        weights = self.weights
        said = [f"starts from {weights.source} (license {weights.license}, {weights.sha256[:8]})"]
        for name, found in self.filled.items():
            said.append(f"  {name}: {found}")
        data = weights.settings.get("data", {})
        for name, mine in (("mean", view.mean), ("std", view.std)):
            theirs = data.get(name)
            if theirs is not None and tuple(theirs) != tuple(mine):
                value = [round(float(each), 4) for each in theirs]
                said.append(
                    f"  note: these weights are used to pixels of another {name}: --set "
                    f"'data.{name}={value}'"
                )
        return [*said, *(f"  note: {note}" for note in weights.notes)]

    def _saved(self, prefix: str) -> Mapping[str, Tensor]:
        return self._checkpoint().part(prefix)

    def _checkpoint(self) -> Saved:
        run = self.weights.run
        saved = checkpoint.find(RunFolder(run).checkpoints)[0] if run is not None else None
        if saved is None:
            raise DataError(
                f"{self.weights.source}: holds an encoder alone, without "
                f"{' or '.join(name for name in self.wanted if name != 'encoder')}. Name a run "
                'folder with its checkpoint, or set train.start_parts=["encoder"].'
            )
        return saved


def begin(
    recipe: Recipe, folder: RunFolder, world: World, *, fresh: bool
) -> tuple[Recipe, Start | None]:
    """Reads the weights that a recipe begins with, unless its run is under way already.

    Args:
        recipe: what to do.
        folder: of the run.
        world: this process among others.
        fresh: whether what lies in the folder will be removed.

    Returns: the recipe with the checksum of the weights; and these, or None.
    Raises: DataError if they cannot be had, or are others than before.
    """
    train = recipe.train
    if train.start_from is None:
        return recipe, None
    before = None if fresh else _before(folder.recipe, train.start_from)
    if not fresh and checkpoint.find(folder.checkpoints)[0] is not None:
        if train.start_sha256 is None:
            _refuse_changed(train.start_from, before, folder)
        return _pinned(recipe, train.start_sha256 or before), None
    if world.leads:
        weights = find_weights(train.start_from, recipe.encoder.cls)
    world.wait()  # the leading process may download them, the others find them in the cache
    if not world.leads:
        weights = find_weights(train.start_from, recipe.encoder.cls)
    pin = train.start_sha256
    if pin not in (None, weights.sha256):
        raise DataError(
            f"{train.start_from}: must be the weights that this recipe was begun with, of SHA-256 "
            f"{pin}, but {weights.file} has {weights.sha256}. Put those back; or for the new ones "
            "begin anew, with --fresh and without train.start_sha256."
        )
    return _pinned(recipe, weights.sha256), Start(weights, train.start_parts)


def _pinned(recipe: Recipe, pin: str | None) -> Recipe:
    return recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"start_sha256": pin})}
    )


def _before(recipe: Path, source: str) -> str | None:
    """The checksum of the weights that the run in a folder began with, if it named the same."""
    if not recipe.is_file():
        return None
    held = parse(recipe.read_text(encoding="utf-8"), str(recipe)).tree.get("train", {})
    same = last_of(held.get("start_from")) == last_of(source)
    return held.get("start_sha256") if same else None


def _refuse_changed(source: str, pin: str | None, folder: RunFolder) -> None:
    """Refuses to go on with a run whose first weights were others than lie there now.

    Those that are gone, or that nobody may download again, are no obstacle.
    """
    path = Path(source.rpartition("=")[2] if source.startswith("timm:") else source)
    file = path / "encoder.safetensors" if path.is_dir() else path
    if pin is not None and file.is_file() and sha256(file) != pin:
        raise DataError(
            f"{folder.path}: this run began with other weights than {source} holds now (SHA-256 "
            f"{pin[:8]}...). To go on with it: mimkit run {folder.path}. For the new ones choose "
            "another folder with --out, or start anew with --fresh."
        )
