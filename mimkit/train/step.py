"""One training step. START READING HERE.

image -> encoder -> tokens -> head -> predictions -> (with the targets) losses -> one number.
No method is named here, no number decides what is computed, and nothing waits for the GPU.
"""

from typing import cast

import torch
from torch import Tensor, nn

from mimkit.parts.loss import StepOutput, Term
from mimkit.parts.part import Module
from mimkit.parts.records import Batch, Mask, Width
from mimkit.parts.shapes import Axes
from mimkit.parts.target import Target
from mimkit.recipe.build import Parts


class Pretrainer(Module):
    """The parts of a recipe, joined into one module whose forward pass is the loss."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder = parts.encoder
        self.head = parts.head
        self.targets = nn.ModuleDict(parts.targets)
        self.terms = parts.terms
        self.losses = nn.ModuleDict({term.name: term.loss for term in parts.terms})
        self.outputs = parts.outputs

    def forward(self, batch: Batch) -> StepOutput:
        """Computes the loss of one batch.

        Raises: BoundaryError if a part returns what the contract does not allow.
        """
        predictions, targets = self.predict(batch)
        terms: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        valid = batch.mask.valid
        for term in self.terms:
            prediction, target = predictions[term.prediction], targets[term.name]
            per_position = term.loss(prediction, target, valid)  # (B, G, M)
            self._check_loss(term, per_position, batch.mask)
            # Padding may hold anything, also NaN: it is replaced, not multiplied by zero.
            kept = torch.where(valid, per_position, 0.0)
            terms[term.name] = kept.sum() / valid.sum().clamp(min=1)
            with torch.no_grad():
                for name, value in term.loss.metrics(prediction, target, valid).items():
                    metrics[f"{term.name}/{name}"] = value.detach()
        total = torch.stack([term.weight * terms[term.name] for term in self.terms]).sum()
        return StepOutput(loss=total, terms=terms, metrics=metrics)

    def predict(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns predictions by name, and by term what each is compared with.

        Shape: predictions (B, G, M, K); targets (B, G, M) int64 or (B, G, M, K).
        """
        mask = batch.mask
        axes = Axes(B=mask.context.shape[0], G=mask.target.shape[1], M=mask.target.shape[2])
        # First what needs no encoder: while a tokenizer runs, nothing yet waits for a gradient.
        with torch.no_grad():
            targets = self._targets(batch, needs_encoder=False)
        if self.head.only_targets:
            wanted = mask.target.flatten(1)
            tokens = self.encoder.at(batch.image, mask.context, mask.hidden, wanted)
        else:
            wanted = mask.context
            tokens = self.encoder(batch.image, mask.context, mask.hidden)
        axes.sizes.update(S=wanted.shape[1], D=self.encoder.embed_dim)
        axes.check("the encoder's patches", tokens.patches, "B S D")
        axes.check("the encoder's prefix", tokens.prefix, "B R D")
        axes.check("the encoder's index", tokens.index, "B S", torch.int64)

        predictions: dict[str, Tensor] = self.head(tokens, mask)
        targets |= self._targets(batch, needs_encoder=True)
        for name, width in self.outputs.items():
            axes.sizes["K"] = width.size
            axes.check(f"the head's prediction '{name}'", predictions.get(name), "B G M K")
        compared: dict[str, Tensor] = {}
        for term in self.terms:
            target = targets[term.target]
            declared: Width = self.targets[term.target].width  # type: ignore[assignment]
            axes.sizes["K"] = declared.size
            where = f"target '{term.target}'"
            if declared.kind == "class":
                axes.check(where, target, "B G M", torch.int64)
            else:
                axes.check(where, target, "B G M K")
            if term.prediction in self.head.own_widths:
                target = self.head.translate(term.prediction, target)
                axes.sizes["K"] = self.outputs[term.prediction].size
                axes.check(f"the head's translation of {where}", target, "B G M K")
            compared[term.name] = target
        return predictions, compared

    def _targets(self, batch: Batch, *, needs_encoder: bool) -> dict[str, Tensor]:
        return {
            name: target(batch, self.encoder)
            for name, target in self.targets.items()
            if cast(Target, target).needs_encoder is needs_encoder
        }

    def after_step(self, progress: float) -> None:
        """Lets every target follow the encoder, once per optimizer step."""
        for target in self.targets.values():
            cast(Target, target).after_step(self.encoder, progress)

    @staticmethod
    def _check_loss(term: Term, per_position: Tensor, mask: Mask) -> None:
        batch, groups, targets = mask.target.shape
        axes = Axes(B=batch, G=groups, M=targets)
        axes.check(f"loss '{term.name}'", per_position, "B G M", torch.float32)
