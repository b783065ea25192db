"""BEiT's target: the ids that a discrete VAE gives the patches (arXiv 2106.08254)."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import torch
from annotated_types import Interval
from torch import Tensor

from mimkit import (
    Batch,
    Count,
    Encoder,
    Geometry,
    Images,
    MimkitError,
    NonNegative,
    Picture,
    Positive,
    Preparation,
    RecipeError,
    Target,
    View,
    Width,
    freeze,
    scatter,
)
from mimkit_beit.fit import Plan
from mimkit_beit.loaded import load
from mimkit_beit.loaded import rehearse as rehearse_loading
from mimkit_beit.tokenizer import PIXEL_MEAN, PIXEL_STD, PUBLISHED, STRIDE, Size, Tokenizer
from mimkit_beit.trained import rehearse as rehearse_training
from mimkit_beit.trained import train
from mimkit_beit.weights import check, choose, default_codes, path_of, settled
from mimkit_beit.work import training_flops

_NUM_DIAGNOSED: Final = 16


class DVAETokens(Target):
    """The visual token of each target patch: one of ``codebook_size`` ids.

    The ids are those of the best code, without sampling. The image is seen in a rendering of its
    own, of 8 pixels a patch, whose normalisation (x + 0.125) / 1.25 = 0.8 x + 0.1 is the
    ``map_pixels`` of DALL·E.

    Args:
        geometry: grid and channels.
        weights: "openai": the published tokenizer of 8192 codes, from ``$MIMKIT_DATA/dall-e/``,
            the cache or the network; "train": one trained on the training images, before
            everything else; a path to an encoder (.pkl, .pth, .safetensors), its decoder beside
            it; "auto": OpenAI's if it is there or can be downloaded, else "train".
        sha256: of the published file, which is refused if it differs; None: of any file.
        codebook_size: how many codes there are; None: 8192, but 512 where one is trained.
        hidden_dim: when trained: channels of the first of four groups of blocks; published 256.
        num_blocks: when trained: residual blocks a group; published 2.
        code_dim: when trained: channels that a code becomes in the decoder; published 128.
        total_steps: when trained: optimizer steps.
        first_ratio: when trained: share of the steps before there are codes.
        batch_size: when trained: images of one step.
        lr: when trained: highest learning rate.
        temperature: when trained: of the Gumbel-softmax, from and to, by a cosine.
        balance_weight: when trained: weight of uneven use of the codes in the loss.
        kl_weight: when trained: weight of the divergence of each token's codes from uniform ones,
            from and to, by a cosine.
        num_images: when trained: at most so many images are used.
        seed: when trained: of first weights, batches and noise; the run's own seed has no
            influence, so that all runs share one tokenizer.

    Raises: RecipeError if options contradict each other.
    Source: BEiT, section 2.1 and appendix (112 px for 14 x 14 patches; argmax); the tokenizer is
        that of DALL·E, arXiv 2102.12092, section 2.1 and appendix A. A trained one departs from
        it: the absolute error of the pixels instead of logit-Laplace; a codebook from k-means
        after a phase without codes; even use over a batch beside the divergence of each token,
        which alone left most codes dead; residual gain 1 / num_blocks instead of 1 / n^2;
        learning rate, temperature and the weight of that divergence follow cosines over the
        whole, short run; betas 0.9 and 0.99; weights are not averaged.
    """

    ragged = True
    needs_encoder = False
    miniature: ClassVar[Mapping[str, Any]] = {
        "weights": "train",
        "codebook_size": 8,
        "hidden_dim": 4,
        "code_dim": 4,
        "total_steps": 2,
    }

    def __init__(
        self,
        geometry: Geometry,
        *,
        weights: str = "auto",
        sha256: str | None = None,
        codebook_size: Annotated[int, Interval(ge=2, le=65_536)] | None = None,
        hidden_dim: Annotated[int, Interval(ge=4, le=4_096)] = 16,
        num_blocks: Annotated[int, Interval(ge=1, le=100)] = 1,
        code_dim: Annotated[int, Interval(ge=1, le=4_096)] = 16,
        total_steps: Count = 3000,
        first_ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.5,
        batch_size: Count = 8,
        lr: Positive = 3e-3,
        temperature: tuple[Positive, Positive] = (1.0, 1 / 16),
        balance_weight: NonNegative = 1e-3,
        kl_weight: tuple[NonNegative, NonNegative] = (0.0, 1e-3),
        num_images: Count = 10_000,
        seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0,
    ) -> None:
        super().__init__()
        check(weights, sha256, codebook_size)
        if hidden_dim % 4:
            raise RecipeError(
                f"target 'dvae', hidden_dim: must be a multiple of 4, but is {hidden_dim}."
            )
        self.weights = choose(weights, codebook_size)
        if self.weights == "openai" and geometry.channels != PUBLISHED.channels:
            raise RecipeError(
                "target 'dvae', weights: OpenAI's tokenizer knows RGB images alone, but "
                f"data.channels is {geometry.channels}. Let one be trained on your images: weights "
                "= 'train'."
            )
        self.sha256 = sha256
        self.num_images = num_images
        self.size = Size(
            codebook_size=codebook_size or default_codes(self.weights),
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            code_dim=code_dim,
            channels=geometry.channels,
        )
        self.plan = Plan(
            total_steps=total_steps,
            first_ratio=first_ratio,
            batch_size=batch_size,
            lr=lr,
            temperature=temperature,
            balance_weight=balance_weight,
            kl_weight=kl_weight,
            seed=seed,
        )
        self.width = Width("class", self.size.codebook_size)
        grid = geometry.grid
        self.token_view = View(
            "tokens",
            (STRIDE * grid.rows, STRIDE * grid.cols),
            mean=(PIXEL_MEAN,) * geometry.channels,
            std=(PIXEL_STD,) * geometry.channels,
            interpolation="lanczos",
        )
        self.views = (self.token_view,)
        self.tokenizer: Tokenizer | None = None

    @classmethod
    def settle(cls, options: Mapping[str, Any], say: Callable[[str], None]) -> Mapping[str, Any]:
        """Decides what "auto" is, downloads what it needs, and notes the file's SHA-256.

        Raises: DataError if published weights are asked for and cannot be had.
        """
        return settled(options, say)

    def prepare(
        self,
        images: Images,
        workdir: Path,
        *,
        device: torch.device,
        say: Callable[[str], None],
    ) -> Preparation:
        """Loads the tokenizer, or trains it; then looks at its health.

        Raises: DataError if a file is missing, damaged, or not the tokenizer that is asked for.
        """
        preparation = self._obtain(
            images, workdir, device, partial(train, say=say), partial(load, say=say)
        )
        facts = preparation.facts
        say(
            f"dvae: {facts['codes used']:,} of {facts['codes']:,} codes are used, perplexity "
            f"{facts['perplexity of the codes']}"
        )
        return preparation

    def rehearse(self, images: Images, workdir: Path, *, device: torch.device) -> Preparation:
        """Loads the tokenizer if it is there; else measures a few steps of its training.

        Raises: DataError as `prepare`.
        """
        return self._obtain(images, workdir, device, rehearse_training, rehearse_loading)

    def _obtain(
        self,
        images: Images,
        workdir: Path,
        device: torch.device,
        by_training: Callable[..., tuple[Tokenizer, Preparation]],
        by_loading: Callable[..., tuple[Tokenizer, Preparation]],
    ) -> Preparation:
        """Gets the tokenizer in one of two ways, and keeps it."""
        if self.weights == "train":
            tokenizer, preparation = by_training(
                images,
                self.token_view,
                workdir,
                size=self.size,
                plan=self.plan,
                num_images=self.num_images,
                device=device,
            )
            num_images = min(self.num_images, len(images))
            flops = training_flops(self.size, self.plan, self.token_view.image_size, num_images)
            preparation = dataclasses.replace(preparation, flops=flops)
        else:
            tokenizer, preparation = by_loading(
                images,
                self.token_view,
                workdir,
                source=path_of(self.weights),
                sha256=self.sha256,
                size=self.size,
                device=device,
            )
        freeze(tokenizer)
        self.tokenizer = tokenizer
        return preparation

    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Looks up the ids of the target patches.

        Shape: (B, G, M) int64.
        Raises: MimkitError before `prepare`.
        """
        return self._prepared()(batch.views["tokens"], batch.mask.target)

    def render(self, prediction: Tensor, batch: Batch) -> tuple[Picture, ...]:
        """Decodes the tokens, once with the predicted ones at the targets; nothing if it cannot."""
        tokenizer = self._prepared()
        if tokenizer.decoder is None:
            return ()
        mask, grid = batch.mask, batch.mask.grid
        true = tokenizer(batch.views["tokens"])  # (B, N)
        chosen = prediction.argmax(dim=-1)  # (B, G, M)
        # Padding points at position 0, which may be a true target: it goes to a spare last place.
        index = torch.where(mask.valid, mask.target, grid.num_patches)
        predicted = scatter(torch.cat([true, true[:, :1]], dim=1), index, chosen)[:, :-1]
        return tuple(
            Picture(
                title,
                tokenizer.decode(ids.view(-1, grid.rows, grid.cols)),
                view=self.token_view,  # not framed: nearly all are wrong, and frames hide the rest
            )
            for title, ids in (
                ("predicted tokens, decoded", predicted),
                ("true tokens, decoded", true),
            )
        )

    def diagnose(self, batch: Batch) -> dict[str, float]:
        """Compares the ids with those of float32 on the CPU, on up to 16 images.

        On CUDA the tokenizer computes in float16, so near-ties may fall the other way.

        Returns: "equal_ids": the share of equal ones.
        """
        tokenizer, view = self._prepared(), batch.views["tokens"][:_NUM_DIAGNOSED]
        exact = copy.deepcopy(tokenizer).cpu()(view.cpu())
        return {"equal_ids": (tokenizer(view).cpu() == exact).float().mean().item()}

    def _prepared(self) -> Tokenizer:
        if self.tokenizer is None:
            raise MimkitError(
                "target 'dvae': must be prepared before it gives tokens, but has no weights yet. "
                "Call prepare(images, workdir, device=..., say=...) first, as mimkit run does."
            )
        return self.tokenizer
