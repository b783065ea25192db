"""Training a dVAE on one's own images, small enough for a CPU.

In two phases. The first trains an ordinary autoencoder, whose features go through a linear
bottleneck to the decoder. Then k-means chooses the codebook among what passes the bottleneck, the
encoder's scores become distances to the codes, and the whole is trained on as a dVAE. Trained as
one from the start, so short a run leaves nearly all codes dead.

What a step draws follows from the seed and its number alone, so that training goes on at any step.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from dall_e.decoder import DecoderBlock
from dall_e.encoder import EncoderBlock
from dall_e.utils import Conv2d
from einops import rearrange
from torch import Tensor, nn

from mimkit import TrainingError
from mimkit_beit.codebook import choose_codes, nearest
from mimkit_beit.tokenizer import (
    PIXEL_STD,
    STRIDE,
    Network,
    Size,
    make_network,
    map_pixels,
    picture,
)

Say = Callable[[str], None]

_WARMUP_RATIO: Final = 0.05
_LAST_LR_RATIO: Final = 0.05
_SECOND_LR_RATIO: Final = 1 / 3
"""Peak of the second phase: larger steps drive codes out of use."""
_SHARPNESS: Final = 0.3
"""First scores are minus squared distances over this share of their mean: each token then has
about five likely codes."""
_VECTORS_PER_CODE: Final = 64
_NUM_REPORTS: Final = 10
_QUIET_SECONDS: Final = 10
"""Least time between two lines of progress."""
_CHUNK_IMAGES: Final = 64
_NUM_TIMED: Final = 1
"""Steps of each phase that an estimate measures, after a slower one."""
_WEIGHTS, _ORDER, _CODES, _NOISE = range(4)
"""What random numbers are for: each use of the seed has a stream of its own."""


@dataclass(frozen=True)
class Plan:
    """How to train.

    Args:
        total_steps: of both phases.
        first_ratio: share of the first phase in them.
        batch_size: images of one step.
        lr: highest learning rate of the first phase.
        temperature: of the Gumbel-softmax, from and to.
        balance_weight: of the divergence between how often codes are used and even use.
        kl_weight: of the divergence between each token's likely codes and all codes alike, from
            and to.
        seed: of first weights, batches and noise.
    """

    total_steps: int
    first_ratio: float
    batch_size: int
    lr: float
    temperature: tuple[float, float]
    balance_weight: float
    kl_weight: tuple[float, float]
    seed: int


class Training(Protocol):
    """What `fit` asks of `mimkit.Resumable`: the steps to do, and how far they are."""

    @property
    def step(self) -> int:
        """The first step that is not done."""

    @property
    def seconds(self) -> float:
        """How many were spent."""

    def steps(
        self, start: int, stop: int, networks: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Iterator[int]:
        """Gives the numbers of the steps of a phase that are still to be done."""


class Rehearsal:
    """Lets `fit` do a few steps of each phase; ``seconds`` is what all of them would take."""

    def __init__(self) -> None:
        self.step = 0
        self.seconds = 0.0

    def steps(
        self, start: int, stop: int, networks: nn.Module, optimizer: torch.optim.Optimizer
    ) -> Iterator[int]:
        """Gives the first steps of a phase."""
        begun, done = time.perf_counter(), 0
        for step in range(start, min(stop, start + 1 + _NUM_TIMED)):
            if step == start + 1:  # the first is slower
                begun, done = time.perf_counter(), 0
            yield step
            done += 1
        self.seconds += (stop - start) * (time.perf_counter() - begun) / max(1, done)


def fit(
    pixels: Tensor,
    size: Size,
    plan: Plan,
    device: torch.device,
    *,
    say: Say,
    training: Training,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trains a dVAE, without touching the global random state; on one CPU always the same.

    Args:
        pixels: (n, C, 8 * rows, 8 * cols) uint8.
        size: of the networks.
        plan: how to train.
        device: where to train.
        say: is told of the progress.
        training: entered, and nothing else is trained in it; tells how far it is.

    Returns: the state dicts of encoder and decoder, on the CPU.
    Raises: TrainingError if the error does not stay finite.
    """
    dvae = _Training(pixels, size, plan, device, say=say, training=training)
    num_first, total = round(plan.total_steps * plan.first_ratio), plan.total_steps
    with torch.enable_grad():
        dvae.phase(0, num_first, plan.lr, dvae.continuous)
        if training.step <= num_first:  # else the codes are in the weights
            dvae.choose_codebook()
        dvae.phase(num_first, total, plan.lr * _SECOND_LR_RATIO, dvae.discrete)
    return _export(dvae.encoder, size), _export(dvae.decoder, size)


class _Training:
    """The networks, and the images that they are trained with."""

    def __init__(
        self,
        pixels: Tensor,
        size: Size,
        plan: Plan,
        device: torch.device,
        *,
        say: Say,
        training: Training,
    ) -> None:
        self.pixels = pixels.to(device)
        self.size = size
        self.plan = plan
        self.device = device
        self.say = say
        self.training = training
        self.told = time.monotonic()
        draws = self._draws(_WEIGHTS)
        bottleneck = nn.Conv2d(8 * size.hidden_dim, size.code_dim, 1, device="meta")
        self.encoder = self._start(_blocks("encoder", size), draws)
        self.decoder = self._start(_blocks("decoder", size), draws)
        self.bottleneck = self._start(nn.Sequential(bottleneck), draws)
        self.networks = nn.ModuleList([self.encoder, self.decoder, self.bottleneck])

    def phase(
        self,
        start: int,
        stop: int,
        lr: float,
        loss: Callable[[Tensor, int, float], tuple[Tensor, Tensor]],
    ) -> None:
        """Minimises ``loss(view, step, progress in [0, 1))``, which also gives the error to report.

        Args:
            start: the first step.
            stop: one more than the last.
            lr: the highest learning rate.
            loss: as above.
        """
        parameters = list(self.networks.parameters())
        optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99), weight_decay=1e-4)
        num_steps = stop - start
        for step in self.training.steps(start, stop, self.networks, optimizer):
            progress = (step - start) / num_steps
            warm = min(1.0, (step - start + 1) / (_WARMUP_RATIO * num_steps))
            optimizer.param_groups[0]["lr"] = lr * warm * _cosine(1.0, _LAST_LR_RATIO, progress)
            total, error = loss(self._view(self._batch(step)), step, progress)
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            done = step + 1
            if done % max(1, self.plan.total_steps // _NUM_REPORTS) == 0:
                if not error.isfinite():
                    raise TrainingError(
                        f"target 'dvae': the error must stay finite, but is {error.item()} at step "
                        f"{done:,}. Lower lr, which is {self.plan.lr}."
                    )
                now = time.monotonic()
                if now - self.told < _QUIET_SECONDS and done < self.plan.total_steps:
                    continue
                self.told = now
                self.say(
                    f"dvae: step {done:,} of {self.plan.total_steps:,}, mean absolute error "
                    f"{error.item() * PIXEL_STD:.4f}, {self.training.seconds:.0f} s"
                )

    def continuous(self, view: Tensor, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """Decodes what the bottleneck lets through."""
        output = self.decoder[1:](self.bottleneck(self._features(view)))
        error = (picture(output) - view).abs().mean()
        return error, error

    @torch.no_grad()
    def choose_codebook(self) -> None:
        """Puts the codes of k-means into the encoder's last and the decoder's first convolution."""
        tokens_per_image = self.pixels[0, 0].numel() // STRIDE**2
        num_images = _VECTORS_PER_CODE * self.size.codebook_size // tokens_per_image + 1
        draws = self._draws(_CODES)
        chosen = torch.randperm(len(self.pixels), generator=draws)[:num_images]
        found = [
            self.bottleneck(self._features(self._view(part)))
            for part in torch.split(chosen, _CHUNK_IMAGES)
        ]
        vectors = rearrange(torch.cat(found), "b d rows cols -> (b rows cols) d")
        codes = choose_codes(vectors, self.size.codebook_size, draws)  # (K, D)
        scale = _SHARPNESS * nearest(vectors, codes)[1].mean().clamp(min=1e-6)
        # -|Wx + b - c|^2 / scale, less what is the same for all codes c, is linear in x.
        weight, bias = self.bottleneck.parameters()
        scores, embedding = self.encoder.get_submodule("output.conv"), self.decoder[0]
        scores.get_parameter("w").copy_((2 * codes @ weight.flatten(1) / scale)[:, :, None, None])
        scores.get_parameter("b").copy_((2 * codes @ bias - codes.square().sum(1)) / scale)
        embedding.get_parameter("w").copy_(codes.T[:, :, None, None])
        embedding.get_parameter("b").zero_()

    def discrete(self, view: Tensor, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """Decodes a relaxed sample of the codes."""
        scores = rearrange(self.encoder(view), "b k rows cols -> b rows cols k")
        noise = self._draws(_NOISE, step, device=scores.device)
        uniform = torch.rand(scores.shape, generator=noise, device=scores.device)
        gumbel = -uniform.clamp(min=1e-20).log().neg().log()
        relaxed = ((scores + gumbel) / _cosine(*self.plan.temperature, progress)).softmax(-1)
        output = self.decoder(rearrange(relaxed, "b rows cols k -> b k rows cols"))
        error = (picture(output) - view).abs().mean()
        shares = scores.softmax(-1)  # (B, rows, cols, K)
        unevenness = self.plan.balance_weight * _from_uniform(shares.mean((0, 1, 2)))
        decidedness = _cosine(*self.plan.kl_weight, progress) * _from_uniform(shares).mean()
        return error + unevenness + decidedness, error

    def _features(self, view: Tensor) -> Tensor:
        features: Tensor = self.encoder[:-1](view)
        return features.relu()

    def _view(self, index: Tensor) -> Tensor:
        pixels = self.pixels[index.to(self.pixels.device)].float() / 255
        return map_pixels(pixels).contiguous(memory_format=torch.channels_last)

    def _batch(self, step: int) -> Tensor:
        """Gives the numbers of a step's images; every image comes once an epoch."""
        epoch, place = divmod(step, math.ceil(len(self.pixels) / self.plan.batch_size))
        order = torch.randperm(len(self.pixels), generator=self._draws(_ORDER, epoch))
        return torch.split(order, self.plan.batch_size)[place]

    def _draws(
        self, use: int, number: int = 0, device: torch.device | str = "cpu"
    ) -> torch.Generator:
        return torch.Generator(device).manual_seed(hash((self.plan.seed, use, number)) % 2**63)

    def _start(self, network: nn.Sequential, draws: torch.Generator) -> nn.Sequential:
        """Draws first weights as the classes of DALL·E do, and prepares for so few blocks."""
        network.to_empty(device="cpu")
        for parameter in network.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                std = parameter[0].numel() ** -0.5
                nn.init.normal_(parameter, std=std, generator=draws)
        for module in network.modules():
            if isinstance(module, EncoderBlock | DecoderBlock):
                module.post_gain = 1 / self.size.num_blocks
            if isinstance(module, Conv2d):
                module.use_float16 = False  # on CUDA; small gradients would vanish
        network.to(memory_format=torch.channels_last)
        return network.to(self.device)


def _blocks(network: Network, size: Size) -> nn.Sequential:
    blocks = make_network(network, size).get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    return blocks


def _export(blocks: nn.Sequential, size: Size) -> dict[str, Tensor]:
    """Returns the weights for the classes as they are, which add less of each block."""
    ratio = _gain_ratio(size)
    return {
        f"blocks.{name}": (tensor * ratio if ".res_path.conv_4." in name else tensor).cpu()
        for name, tensor in blocks.state_dict().items()
    }


def _gain_ratio(size: Size) -> float:
    """The factor of a block's last convolution with which it adds 1 / num_blocks.

    The classes of DALL·E add 1 / n^2 of it, n being the number of all blocks.
    """
    return (4 * size.num_blocks) ** 2 / size.num_blocks


def _from_uniform(shares: Tensor) -> Tensor:
    """Gives the divergence of shares (..., K) from 1 / K each: (...)."""
    # A share may round to 0, where a logarithm has no gradient.
    return (shares * (shares.clamp(min=1e-9) * shares.shape[-1]).log()).sum(-1)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
