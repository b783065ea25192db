"""One part in miniature, and what is put before it: images, masks, tokens."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from mimkit.builtin.encoders import ViT
from mimkit.errors import RecipeError
from mimkit.parts.encoder import Encoder
from mimkit.parts.head import Head
from mimkit.parts.loss import Loss
from mimkit.parts.masker import Masker
from mimkit.parts.patches import patchify, take, unpatchify
from mimkit.parts.records import Batch, Geometry, Grid, Mask, Tokens, View, Width
from mimkit.parts.target import Preparation, Target
from mimkit.recipe import registry
from mimkit.recipe.options import options
from mimkit.recipe.registry import Entry

SQUARE: Final = Grid(4, 4, 4)
OBLONG: Final = Grid(3, 5, 4)
NUM_MASKED: Final = 6
_DIMS: Final = (192, 768, 1024)
"""Widths of an encoder that a head is tried with: some have many heads."""


@dataclass(frozen=True)
class Specimen:
    """A registered part with the options that make it small.

    Args:
        entry: what is registered.
        workdir: where targets keep what they prepare.
        channels: of the images.
    """

    entry: Entry
    workdir: Path
    channels: int = 3

    @cached_property
    def cls(self) -> Any:
        """What is registered, imported.

        Raises: PluginError if it cannot be.
        """
        return registry.load(self.entry)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The constructor's defaults, `Part.miniature` laid over them, settled.

        Raises: PluginError if the constructor breaks the rule.
        """
        declared = options(self.entry, self.cls)
        defaults = {o.name: o.default for o in declared if o.default is not ...}
        return dict(self.cls.settle({**defaults, **self.cls.miniature}, lambda _: None))

    @property
    def kind(self) -> str:
        """A key of `mimkit.recipe.registry.KINDS`."""
        return self.entry.kind

    def make(self, grid: Grid = SQUARE, *, seed: int = 0) -> Any:
        """Constructs the part in evaluation mode, with weights that follow from the seed.

        Raises: RecipeError if it refuses this grid or these options.
        """
        part = self._construct(grid, seed)
        if isinstance(part, nn.Module):
            part.eval()
        if isinstance(part, Target):
            part.bind(self.encoder(grid))
            self.prepare(part, grid)
        return part

    def prepare(self, target: Target, grid: Grid = SQUARE) -> Preparation | None:
        """Does what must be done before training, on a few images."""
        pictures = _Pictures(grid, self.channels)
        cpu = torch.device("cpu")
        return target.prepare(pictures, self.workdir, device=cpu, say=lambda _: None)

    def construct(self, grid: Grid = SQUARE) -> Any:
        """Calls the constructor alone."""
        return self._construct(grid, 0)

    def _construct(self, grid: Grid, seed: int) -> Any:
        # All that is found out once, and may draw, comes before the seed.
        geometry, cls, options = self._geometry(grid), self.cls, self.options
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(geometry, **options)

    def _geometry(self, grid: Grid) -> Geometry:
        """What the part is told of the rest.

        Raises: RecipeError if a head accepts no width and predictions.
        """
        if self.kind in ("maskers", "encoders"):
            return Geometry(grid, self.channels)
        if self.kind == "targets":
            return Geometry(grid, self.channels, embed_dim=_DIMS[0])
        if self.kind == "losses":
            width = self.loss_width(self.loss_kind)
            return Geometry(grid, self.channels, _DIMS[0], {"a": width})
        return dataclasses.replace(self.head_geometry, grid=grid)

    @cached_property
    def head_geometry(self) -> Geometry:
        """The first width and predictions that a head accepts.

        Raises: RecipeError if it accepts none.
        """
        refused: RecipeError | None = None
        for dim in _DIMS:
            both = {"a_class": Width("class", 7), "a_vector": Width("vector", 5)}
            for outputs in (both, {"a_vector": Width("vector", dim)}):
                geometry = Geometry(SQUARE, self.channels, dim, outputs)
                try:
                    with torch.random.fork_rng(devices=[]):
                        self.cls(geometry, **self.options)
                except RecipeError as error:
                    refused = refused or error
                else:
                    return geometry
        assert refused is not None
        raise refused

    @property
    def loss_kind(self) -> Literal["class", "vector"]:
        """A kind of target that the loss compares."""
        return "vector" if "vector" in self.cls.kinds else "class"

    @staticmethod
    def loss_width(kind: Literal["class", "vector"]) -> Width:
        """What its predictions are."""
        return Width(kind, 7 if kind == "class" else 16)

    def encoder(self, grid: Grid = SQUARE) -> ViT:
        """A small encoder, which takes any mask, for what needs one."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            geometry = Geometry(grid, self.channels)
            return ViT(geometry, embed_dim=_DIMS[0], depth=1, num_heads=3, mask_token=True).eval()

    def image(self, grid: Grid = SQUARE, *, size: int = 2, seed: int = 0) -> Tensor:
        """Noise, (B, C, H, W)."""
        return torch.randn(size, self.channels, *grid.image_size, generator=_generator(seed))

    def mask(
        self, grid: Grid = SQUARE, *, size: int = 2, hides: bool, ragged: bool = False
    ) -> Mask:
        """Six masked patches an image, drawn; the second image has fewer if they are ragged."""
        noise = torch.rand(size, grid.num_patches, generator=_generator(7))
        masked = torch.zeros_like(noise, dtype=torch.bool)
        masked.scatter_(1, noise.argsort(dim=1)[:, :NUM_MASKED], True)
        if ragged:
            first = masked[-1].nonzero()[0]
            masked[-1, first] = False
        return Mask.replace(masked, grid) if hides else Mask.drop(masked, grid)

    def batch(self, target: Target, mask: Mask, *, seed: int = 0) -> Batch:
        """Images in every rendering that a target asks for."""
        size = mask.context.shape[0]
        views = {"image": self.image(mask.grid, size=size, seed=seed)}
        for view in target.views:
            noise = torch.rand(
                size, self.channels, *view.image_size, generator=_generator(seed + 1)
            )
            views[view.name] = noise
        return Batch(views, mask, None, torch.arange(size))

    def tokens(self, head: Head, mask: Mask, *, seed: int = 0) -> Tokens:
        """Noise in place of an encoder's tokens, in the order that a head is given them."""
        index = mask.target.flatten(1) if head.only_targets else mask.context
        size = index.shape[0]
        dim = self.head_geometry.embed_dim
        every = torch.randn(size, mask.grid.num_patches, dim, generator=_generator(seed))
        prefix = torch.randn(size, 1, dim, generator=_generator(seed + 1))
        return Tokens(take(every, index), prefix[:, : 0 if head.only_targets else 1], index)

    def compared(self, *, size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
        """A prediction, a target and what is valid of them, for a loss; the last are padding."""
        width = self.loss_width(self.loss_kind)
        generator = _generator(0)
        prediction = torch.randn(size, 1, NUM_MASKED, width.size, generator=generator)
        if width.kind == "class":
            shape = (size, 1, NUM_MASKED)
            target = torch.randint(width.size, shape, generator=generator)
        else:
            target = torch.randn(size, 1, NUM_MASKED, width.size, generator=generator)
        valid = torch.ones(size, 1, NUM_MASKED, dtype=torch.bool)
        valid[-1, 0, -2:] = False
        return prediction, target, valid

    @torch.no_grad()
    def outcome(self, part: Any, grid: Grid = SQUARE, *, size: int = 2) -> list[Tensor]:
        """What a part makes of the same input every time."""
        if isinstance(part, Masker):
            mask = part.sample(size, _generator(3))
            return [mask.context, mask.hidden, mask.target, mask.valid]
        if isinstance(part, Encoder):
            tokens = part(self.image(grid, size=size))
            return [tokens.patches, tokens.prefix]
        if isinstance(part, Target):
            batch = self.batch(part, self.mask(grid, size=size, hides=False))
            return [part(batch, self.encoder(grid))]
        if isinstance(part, Head):
            mask = self.mask(grid, size=size, hides=needs_hidden(part))
            found = part(self.tokens(part, mask), mask)
            return [found[name] for name in sorted(found)]
        assert isinstance(part, Loss)
        return [part(*self.compared(size=size))]


def needs_hidden(head: Head) -> bool:
    """Whether a head reads tokens of hidden patches."""
    return head.needs_hidden or head.only_targets


def with_noise_at(image: Tensor, cells: Tensor, grid: Grid) -> Tensor:
    """Replaces the pixels of the marked patches, (B, N) bool, by other noise."""
    patches = patchify(image, grid.patch_size).clone()
    noise = torch.randn(patches.shape, generator=_generator(11))
    patches[cells] = noise[cells]
    return unpatchify(patches, grid)


def cells_of(index: Tensor, grid: Grid) -> Tensor:
    """Marks positions on the grid: (B, S) int64 to (B, N) bool."""
    return torch.zeros(len(index), grid.num_patches, dtype=torch.bool).scatter(1, index, True)


def moved(mask: Mask, target: Tensor, valid: Tensor) -> Mask:
    """A mask with other targets."""
    return dataclasses.replace(mask, target=target, valid=valid)


def same(one: Sequence[Tensor], other: Sequence[Tensor], *, exactly: bool = True) -> bool:
    """Whether two lists of tensors agree, bit for bit or to 1e-4."""
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return False
    if exactly:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(one, other, strict=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class _Pictures:
    """A few drawn images, as a target's ``prepare`` gets them."""

    grid: Grid
    channels: int
    num_images: int = 16

    @cached_property
    def fingerprint(self) -> str:
        return f"conformance {self.grid} {self.channels} {self.num_images}"

    def __len__(self) -> int:
        return self.num_images

    def view(self, index: Tensor, view: View) -> Tensor:
        noise = torch.rand(
            self.num_images, self.channels, *view.image_size, generator=_generator(5)
        )
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (view.mean, view.std))
        return (noise[index] - mean) / std
