"""The five kinds of part that a recipe composes.

The constructor rule: ``__init__(self, geometry, *, option: type = default, ...)``. What stands
after ``*`` are the recipe's keys, so the signature is the schema: every option has a type, none
is hidden in ``**kwargs``. A constructor is cheap and offline; what costs time or the network
belongs in `Target.prepare`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

from mimkit.errors import RecipeError
from mimkit.parts.patches import take
from mimkit.parts.records import (
    Batch,
    Grid,
    Imported,
    Mask,
    Picture,
    Preparation,
    TimmModel,
    Tokens,
    View,
    Width,
)


class Part(ABC):  # noqa: B024 -- abstract by what its subclasses declare
    """What all parts share: the constructor rule (see the contract of a part), and plain options.

    >>> class Halves(Masker):
    ...     miniature = {"upper": True}  # what `mimkit check` tries it with
    ...
    ...     def __init__(self, geometry, *, upper: bool):
    ...         self.upper = upper
    ...
    ...     def sample(self, batch_size, generator): ...
    >>> Halves(Geometry(Grid(2, 2, 4)), upper=False).upper
    False

    Attributes:
        miniature: options, other than the defaults, that make it small, quick and offline, for
            the checks of `mimkit.conformance`; also what has no default.
    """

    miniature: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def settle(cls, options: Mapping[str, Any], say: Callable[[str], None]) -> Mapping[str, Any]:
        """Decides what options such as ``"auto"`` mean on this machine; by default nothing.

        Is called when a run starts, before its recipe is written out in full, so that the
        written recipe says what was done. May look at the disk and the network.

        Args:
            options: all options of the constructor, defaults included.
            say: receives a line of text for people.

        Returns: the options to construct the part with.
        """
        return options


class Images(Protocol):
    """The unlabelled training images, as `Target.prepare` gets them.

    >>> def brightest(images: Images, view: View) -> float:
    ...     return float(images.view(torch.arange(len(images)), view).max())
    """

    @property
    def fingerprint(self) -> str:
        """Changes whenever the images change: a key for caches."""

    def __len__(self) -> int: ...

    def view(self, index: Tensor, view: View) -> Tensor:
        """Renders whole images, not augmented.

        Shape: index (n,) int64; (n, C, H, W) float32 on the CPU.
        """


if TYPE_CHECKING:
    _P = ParamSpec("_P")
    _R_co = TypeVar("_R_co", covariant=True)

    class _HasForward(Protocol[_P, _R_co]):
        def forward(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...

    class _AsForward:
        """A module is called as its ``forward`` is; to torch's own ``__call__`` all is Any."""

        def __get__(self, module: _HasForward[_P, _R_co], owner: type) -> Callable[_P, _R_co]: ...


class Module(nn.Module):
    """`torch.nn.Module` as the core needs it; calls are type-checked as ``forward`` is.

    >>> class Tokened(Module):
    ...     def no_weight_decay(self):
    ...         return frozenset({"mask_token"})
    >>> sorted(Tokened().no_weight_decay())
    ['mask_token']
    """

    def no_weight_decay(self) -> frozenset[str]:
        """Names of parameters, relative to this module, that weight decay leaves alone.

        Parameters of one axis (biases, norms) are always left alone.
        """
        return frozenset()

    if TYPE_CHECKING:
        __call__ = _AsForward()


class Masker(Part):
    """Chooses what is hidden. Runs on the CPU, in a data worker.

    >>> class First(Masker):
    ...     def __init__(self, geometry, *, num_masked: int = 1):
    ...         self.grid, self.num_targets = geometry.grid, num_masked
    ...
    ...     def sample(self, batch_size, generator):
    ...         masked = torch.arange(self.grid.num_patches) < self.num_targets
    ...         return Mask.drop(masked.expand(batch_size, -1), self.grid)
    >>> mask = First(Geometry(Grid(2, 2, 4))).sample(1, torch.Generator())
    >>> mask.context.tolist(), mask.target.tolist()
    ([[1, 2, 3]], [[[0]]])

    Attributes:
        ragged: True if counts differ between images, so that padding occurs.
        num_targets: M, or None if it varies from batch to batch.
        hides: True if its masks let hidden patches enter the encoder as mask tokens.
    """

    ragged: bool = False
    num_targets: int | None = None
    hides: bool = False

    @abstractmethod
    def sample(self, batch_size: int, generator: torch.Generator) -> Mask:
        """Draws the masks of one batch, from ``generator`` alone.

        Shape: see `Mask`; the first axis is ``batch_size``.
        """

    def mask_of(self, masked: Tensor) -> Mask:
        """Gives the mask that would have been drawn, had just these patches been chosen.

        With it several methods are shown the same hidden region. By default it follows from what
        this masker declares: dropped patches, or mask tokens if it ``hides``; then all patches
        are targets if ``num_targets`` says so, else the masked ones, in one group, not padded.

        Shape: masked (B, N) bool with equally many in every image; the mask as `sample` gives it.
        Raises: RecipeError if this kind of mask does not allow their number.
        """
        grid = self.sample(1, torch.Generator().manual_seed(0)).grid
        if not self.hides:
            return Mask.drop(masked, grid)
        if self.num_targets == grid.num_patches:
            return Mask.replace_predicting_all(masked, grid)
        return Mask.replace(masked, grid)


class Backbone(Module, ABC):
    """The network that a downstream task trains end to end.

    >>> class Mean(Backbone):
    ...     num_features = 3
    ...
    ...     def forward(self, image):
    ...         return image.mean(dim=(2, 3))
    ...
    ...     def layer_groups(self):
    ...         return []
    >>> Mean()(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 3])

    Attributes:
        num_features: width of its output.
    """

    num_features: int

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Gives one vector per image.

        Shape: (B, C, H, W) to (B, num_features).
        """

    @abstractmethod
    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Lists the parameters from input to output, for layer-wise learning-rate decay.

        The last group learns at the classifier's own rate: what follows the last layer, such as a
        closing norm; it is empty where nothing does. The group before it is the last layer, which
        the decay counts once, the one below it twice, and so on.
        """

    def set_drop_path(self, rate: float) -> None:
        """Sets stochastic depth: ``rate`` for the last block, rising linearly from 0.

        Raises: RecipeError if this network has none, which is the default.
        """
        raise RecipeError(
            f"{type(self).__name__} has no stochastic depth, so drop_path must be 0, but is {rate}."
        )


class Encoder(Part, Module):
    """What is kept after pre-training.

    >>> from mimkit.builtin.encoders import ViT
    >>> encoder: Encoder = ViT(Geometry(Grid(2, 2, 4)), embed_dim=16, depth=1, num_heads=2)
    >>> encoder(torch.zeros(1, 3, 8, 8), torch.tensor([[0, 3]])).patches.shape
    torch.Size([1, 2, 16])

    Attributes:
        embed_dim: D, the width of its tokens.
        takes_hidden: True if it can show patches as mask tokens; a masker that hides needs it.
    """

    embed_dim: int
    takes_hidden: bool = False

    @abstractmethod
    def forward(
        self, image: Tensor, context: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tokens:
        """Encodes the patches at ``context``; those that are ``hidden`` as a mask token.

        Args:
            image: (B, C, H, W) float.
            context: (B, S) int64 positions, or None for all of the grid.
            hidden: (B, S) bool, or None for none hidden.

        Shape: patches (B, S, D), prefix (B, R, D), index (B, S).
        """

    def at(
        self, image: Tensor, context: Tensor | None, hidden: Tensor | None, wanted: Tensor
    ) -> Tokens:
        """Encodes like `forward`, but gives only the patches at ``wanted``, of those that entered.

        This is what a head with ``only_targets`` is given. Override it where an encoder can spare
        itself the work on the other tokens in its last block.

        Args:
            image: (B, C, H, W) float.
            context: as in `forward`.
            hidden: as in `forward`.
            wanted: (B, W) int64, places in the context; one may occur more than once.

        Shape: patches (B, W, D), prefix (B, R, D), index (B, W).
        """
        tokens = self(image, context, hidden)
        return Tokens(
            patches=take(tokens.patches, wanted),
            prefix=tokens.prefix,
            index=take(tokens.index, wanted),
        )

    def features(self, image: Tensor) -> Tokens:
        """Gives the tokens that a frozen probe reads; by default those of the whole image.

        Shape: image (B, C, H, W); patches (B, T, D) with T not necessarily N.
        """
        return self(image)

    def layers(self, image: Tensor) -> tuple[Tokens, ...]:
        """Gives the tokens after each block, for probes of every layer; by default the last only.

        The last element is what `features` gives.
        """
        return (self.features(image),)

    def attention(self, image: Tensor) -> Tensor | None:
        """Says which patches of a whole image the last block looks at, for pictures.

        Of the class token, or the mean over all patches that look where there is none; the mean
        over heads (`mimkit.patch_attention`). None if there is no such thing, which is the default.

        Shape: (B, N) float, summing to 1 over the patches.
        """
        return None

    @abstractmethod
    def backbone(self, grid: Grid | None = None) -> Backbone:
        """Returns a fresh network for fine-tuning, initialised from this encoder's weights.

        Args:
            grid: of the images it will see; None for that of pre-training.

        Raises: RecipeError if it cannot be made for another grid.
        """

    def timm_model(self) -> TimmModel:
        """Says which model of timm computes the same features, and with which weights.

        Raises: RecipeError if timm has no such model, which is the default.
        """
        raise RecipeError(
            f"{type(self).__name__} is none of timm's models. Export it with --format safetensors."
        )


class Target(Part, Module):
    """What must be predicted.

    >>> class Position(Target):
    ...     def __init__(self, geometry):
    ...         super().__init__()
    ...         self.width = Width("class", geometry.grid.num_patches)
    ...
    ...     def forward(self, batch, encoder):
    ...         return batch.mask.target
    >>> Position(Geometry(Grid(2, 2, 4))).width
    Width(kind='class', size=4)

    Attributes:
        width: kind and size of one target, which a head must match.
        views: renderings it needs beside the encoder's ``"image"``.
        ragged: True if padded positions do not disturb the others.
        needs_encoder: False if it follows from the batch alone, without a random number. It is
            then computed before the encoder, when nothing is held in memory for the gradient yet.
    """

    width: Width
    views: tuple[View, ...] = ()
    ragged: bool = False
    needs_encoder: bool = True

    def bind(self, encoder: Encoder) -> None:
        """Is called once, when the parts of a recipe meet and before any checkpoint is loaded.

        A target with a teacher copies the encoder here. The encoder itself must not become a
        submodule of the target: its parameters would count twice.
        """

    def prepare(
        self,
        images: Images,
        workdir: Path,
        *,
        device: torch.device,
        say: Callable[[str], None],
    ) -> Preparation | None:
        """Does what must happen once before training, such as fitting a tokenizer.

        Args:
            images: the unlabelled training images.
            workdir: where results are cached from run to run, shared by all runs: what is kept
                there must be named after all that it depends on.
            device: where to compute; this target itself is still on the CPU.
            say: receives a line of text for people whenever there is progress to tell.

        Returns: what it cost and what came of it, for the ledger and the report; None if there
            was nothing to do.
        Raises: DataError if what it needs cannot be had.
        """
        return None

    def rehearse(
        self, images: Images, workdir: Path, *, device: torch.device
    ) -> Preparation | None:
        """Gets ready to be measured, for a plan that must be there within seconds.

        Where `prepare` takes long this trains and downloads nothing: what is in ``workdir`` is
        used, else a few of its own steps tell what the whole would take, and any weights of the
        right shape stand in for those to come. By default it is `prepare`.

        Args:
            images: the unlabelled training images.
            workdir: as for `prepare`; nothing is written there.
            device: where to compute; this target itself is still on the CPU.

        Returns: as `prepare`; ``seconds`` and ``flops`` are estimates unless it is ``cached``.
        """
        return self.prepare(images, workdir, device=device, say=lambda _: None)

    @abstractmethod
    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Gives the targets at ``batch.mask.target``.

        Shape: (B, G, M) int64 for width kind "class", else (B, G, M, K) float.
        """

    def after_step(self, encoder: Encoder, progress: float) -> None:
        """Is called after every optimizer step, with progress in (0, 1]: teachers move here."""

    def render(self, prediction: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Shows predictions of this target as pictures; by default none.

        Shape: prediction (B, G, M, K).
        """
        return ()

    def diagnose(self, batch: Batch) -> dict[str, float]:
        """Gives what `mimkit bench` should say of this target beside its time; by default nothing.

        For instance how far ids in half precision agree with those in float32.
        """
        return {}


class Head(Part, Module):
    """Turns the encoder's tokens into predictions; it never sees a target.

    >>> class Zero(Head):
    ...     def __init__(self, geometry):
    ...         super().__init__()
    ...         self.outputs = geometry.outputs
    ...
    ...     def forward(self, tokens, mask):
    ...         shape = mask.target.shape
    ...         return {name: torch.zeros(*shape, w.size) for name, w in self.outputs.items()}
    >>> Zero(Geometry(Grid(2, 2, 4), outputs={"ids": Width("class", 7)})).ragged
    False

    Attributes:
        ragged: True if padded targets do not disturb the others.
        needs_hidden: True if it reads the tokens at ``mask.target``, so that a masker must hide.
        only_targets: True if it reads these and no others, nor the prefix. It is then given these
            alone, in the order of ``mask.target.flatten(1)``, which lets an encoder do less.
    """

    ragged: ClassVar[bool] = False
    needs_hidden: ClassVar[bool] = False
    only_targets: ClassVar[bool] = False

    @abstractmethod
    def forward(self, tokens: Tokens, mask: Mask) -> dict[str, Tensor]:
        """Predicts every name in ``geometry.outputs`` at ``mask.target``.

        Shape: each (B, G, M, K).
        """

    def pooling(self) -> nn.Module | None:
        """Returns a copy of the learned pooling of `Tokens` to (B, D), if this head has one."""
        return None


class Loss(Part, Module):
    """Compares predictions with targets.

    >>> class Distance(Loss):
    ...     def __init__(self, geometry):
    ...         super().__init__()
    ...
    ...     def forward(self, prediction, target, valid):
    ...         kept = torch.where(valid[..., None], prediction.float(), 0.0)
    ...         return (kept - target).abs().mean(dim=-1)
    >>> valid = torch.tensor([[[True, False]]])
    >>> Distance(None)(torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), valid).tolist()
    [[[1.0, 0.0]]]

    Attributes:
        kinds: the target width kinds that it can compare.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"vector"})

    @abstractmethod
    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Gives one value per position, unreduced; the core takes the mean of the valid ones.

        Shape: prediction (B, G, M, K), target (B, G, M) or (B, G, M, K), valid (B, G, M);
        result (B, G, M) float32.
        """

    def metrics(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Gives scalars () worth logging beside the loss; by default none."""
        return {}

    def warning(self, means: Mapping[str, float]) -> str | None:
        """Says what is wrong, in words for people; by default nothing ever is.

        Args:
            means: this loss's metrics, averaged since they were last logged.
        """
        return None

    def render(self, prediction: Tensor, target: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Shows what was predicted as pictures; by default none."""
        return ()


class Importer(ABC):
    """Reads the checkpoints of another project.

    >>> class Flat(Importer):
    ...     def read(self, file):
    ...         weights = read_checkpoint(file).tensors
    ...         return Imported({"encoder": {"part": "vit"}}, weights)

    Attributes:
        recipe: the registered recipe whose remaining tables (data, training, evaluation) an
            imported run gets.
    """

    recipe: ClassVar[str]

    @abstractmethod
    def read(self, file: Path) -> Imported:
        """Reads a checkpoint without running any code that it may hold.

        Raises: DataError if the file is none of the known layouts.
        """
