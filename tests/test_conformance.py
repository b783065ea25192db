"""The checks of parts: for each a part that fails it and no other."""

import dataclasses
import inspect
import itertools
import random
from typing import Annotated, ClassVar

import numpy as np
import pytest
import torch
from pydantic import AfterValidator
from rich.console import Console
from torch import nn

from mimkit import (
    Encoder,
    Geometry,
    Head,
    Level,
    Loss,
    Mask,
    Masker,
    PluginError,
    Preparation,
    RecipeError,
    Tokens,
    View,
    Width,
    sincos,
)
from mimkit.builtin.encoders import ViT
from mimkit.builtin.heads import LinearHead
from mimkit.builtin.losses import MSE
from mimkit.builtin.maskers import RandomMasker
from mimkit.builtin.targets import Latent, Pixels
from mimkit.conformance import conformance, examine
from mimkit.conformance.checks import CHECKS
from mimkit.conformance.examine import Examination, Verdict, checks_of
from mimkit.conformance.table import _table, check_distribution
from mimkit.recipe.options import options as options_of
from mimkit.recipe.registry import Entry, entries, is_distribution

COUNT = itertools.count()
BROKEN = []


def breaks(name, kind):
    """Notes a class that breaks one rule, and explains its options."""

    def note(cls):
        if "__doc__" not in vars(cls) or cls.__doc__ is None:
            entry = Entry(kind, "x", "mimkit-tiny", "1", "")
            try:
                names = [option.name for option in options_of(entry, cls)]
            except PluginError:
                names = []
            lines = "".join(f"    {each}: meaning.\n" for each in names)
            cls.__doc__ = f"Breaks a rule.\n\nArgs:\n{lines}\nSource: own.\n"
        BROKEN.append(pytest.param(name, kind, cls, id=f"{name}-{cls.__name__}"))
        return cls

    return note


# ---------------------------------------------------------------------------------------- maskers


class Good(RandomMasker):
    def __init__(self, geometry, *, mask_ratio: float = 0.4) -> None:
        super().__init__(geometry, mask_ratio=mask_ratio)


@breaks("keeps_the_constructor_rule", "maskers")
class Hidden(Good):
    def __init__(self, geometry, **kwargs) -> None:
        super().__init__(geometry)


@breaks("is_documented", "maskers")
class Undocumented(Good):
    """It hides patches.

    Args:
        mask_ratio: how many.
    """


@breaks("is_documented", "maskers")
class Unexplained(Good):
    """It hides patches.

    Source: own.
    """


@breaks("options_survive_a_recipe", "maskers")
class Shrinking(Good):
    def __init__(
        self, geometry, *, mask_ratio: Annotated[float, AfterValidator(lambda v: v * 0.9)] = 0.4
    ) -> None:
        super().__init__(geometry, mask_ratio=mask_ratio)


@breaks("is_made_in_miniature", "maskers")
class Demanding(RandomMasker):
    miniature: ClassVar = {}


@breaks("is_made_in_miniature", "maskers")
class Greedy(Good):
    miniature: ClassVar = {"mask_ratio": 1.0}


@breaks("works_on_oblong_grids", "maskers")
class Square(Good):
    def sample(self, batch_size, generator):
        assert self.grid.rows == self.grid.cols
        return super().sample(batch_size, generator)


@breaks("works_with_other_channels", "encoders")
class Colourful(ViT):
    miniature: ClassVar = {"embed_dim": 16, "depth": 1, "num_heads": 2}

    def __init__(
        self, geometry, *, embed_dim: int = 192, depth: int = 12, num_heads: int = 3
    ) -> None:
        rgb = Geometry(geometry.grid)
        super().__init__(rgb, embed_dim=embed_dim, depth=depth, num_heads=num_heads)


@breaks("works_with_other_channels", "targets")
class RgbView(Pixels):
    def __init__(self, geometry, *, normalize: bool = True) -> None:
        super().__init__(geometry, normalize=normalize)
        self.views = (View("small", (8, 8)),)


@breaks("works_on_one_image", "maskers")
class Many(Good):
    def sample(self, batch_size, generator):
        assert batch_size > 1
        return super().sample(batch_size, generator)


@breaks("masks_have_the_right_axes", "maskers")
class Flat(Good):
    def sample(self, batch_size, generator):
        mask = super().sample(batch_size, generator)
        return Mask(mask.grid, mask.context, mask.hidden, mask.target[:, 0], mask.valid[:, 0])


@breaks("what_is_tunable_can_be_tried", "maskers")
class Misspelt(Good):
    tunable: ClassVar = {"mask_ration": (0.1, 0.9)}


@breaks("what_is_tunable_can_be_tried", "maskers")
class Backwards(Good):
    tunable: ClassVar = {"mask_ratio": (0.9, 0.1)}


@breaks("what_is_tunable_can_be_tried", "maskers")
class Overdone(Good):
    tunable: ClassVar = {"mask_ratio": (0.1, 1.0)}


@breaks("the_same_seed_gives_the_same_masks", "maskers")
class Restless(Good):
    def sample(self, batch_size, generator):
        return super().sample(batch_size, torch.Generator().manual_seed(next(COUNT)))


@breaks("positions_lie_on_the_grid_and_ascend", "maskers")
class Descending(Good):
    def sample(self, batch_size, generator):
        mask = super().sample(batch_size, generator)
        return Mask(mask.grid, mask.context.flip(1), mask.hidden, mask.target, mask.valid)


@breaks("counts_are_as_declared", "maskers")
class Miscounted(Good):
    num_targets = 3

    def __init__(self, geometry, *, mask_ratio: float = 0.4) -> None:
        super().__init__(geometry, mask_ratio=mask_ratio)
        self.num_targets = 3


@breaks("counts_are_as_declared", "maskers")
class SecretlyRagged(Good):
    def sample(self, batch_size, generator):
        mask = super().sample(batch_size, generator)
        valid = mask.valid.clone()
        valid[0, 0, 0] = False
        return Mask(mask.grid, mask.context, mask.hidden, mask.target, valid)


@breaks("counts_are_as_declared", "maskers")
class Hiding(RandomMasker):
    def __init__(self, geometry, *, mask_ratio: float = 0.4) -> None:
        super().__init__(geometry, mask_ratio=mask_ratio, mode="replace")
        self.hides = False

    def sample(self, batch_size, generator):
        masked = torch.rand(batch_size, 16, generator=generator).argsort(dim=1) < 6
        return Mask.replace(masked, self.grid)


@breaks("what_is_predicted_is_not_seen", "maskers")
class Leaking(Good):
    def sample(self, batch_size, generator):
        mask = super().sample(batch_size, generator)
        context = torch.arange(mask.grid.num_patches).expand(batch_size, -1)
        hidden = torch.zeros_like(context, dtype=torch.bool)
        return Mask(mask.grid, context, hidden, mask.target, mask.valid)


@breaks("can_be_sent_to_a_loader", "maskers")
class Unpicklable(Good):
    def __init__(self, geometry, *, mask_ratio: float = 0.4) -> None:
        super().__init__(geometry, mask_ratio=mask_ratio)
        self.function = lambda: None


# --------------------------------------------------------------------------------------- encoders


class Small(ViT):
    dense = Encoder.dense  # what breaks its tokens breaks its maps: those have an encoder of theirs

    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim, depth=1, num_heads=2)

    def layers(self, image):
        return (self(image),)

    def changed(self, image, context, hidden, change):
        tokens = ViT.forward(self, image, context, hidden)
        return Tokens(change(tokens.patches), tokens.prefix, tokens.index)


@breaks("leaves_the_random_state_alone", "encoders")
class Random(Small):
    def forward(self, image, context=None, hidden=None):
        return self.changed(image, context, hidden, lambda x: x + 0 * torch.randn(()))


@breaks("leaves_the_random_state_alone", "encoders")
class RandomOfPython(Small):
    def forward(self, image, context=None, hidden=None):
        return self.changed(image, context, hidden, lambda x: x + 0 * random.random())


@breaks("leaves_the_random_state_alone", "encoders")
class RandomOfNumpy(Small):
    def forward(self, image, context=None, hidden=None):
        return self.changed(image, context, hidden, lambda x: x + 0 * float(np.random.rand()))


@breaks("all_it_knows_is_in_its_state", "encoders")
class Secretive(Small):
    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim)
        self.shift = float(torch.randn((), device="cpu"))

    def forward(self, image, context=None, hidden=None):
        return self.changed(image, context, hidden, lambda x: x + self.shift)


@breaks("follows_its_seed", "encoders")
class Unset(Small):
    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim)
        self.extra = nn.Parameter(torch.full((3,), float(next(COUNT))), requires_grad=False)


@breaks("is_made_without_weights", "encoders")
class Looking(Small):
    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim)
        self.largest = float(self.patch_embed.proj.weight.detach().max())


@breaks("tokens_have_the_declared_width", "encoders")
class Boasting(Small):
    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim)
        self.embed_dim += 1


@breaks("tokens_follow_the_context", "encoders")
class Reversed(Small):
    def forward(self, image, context=None, hidden=None):
        part = context is not None and context.shape[1] < self.grid.num_patches
        return self.changed(image, context, hidden, lambda x: x.flip(1) if part else x)


@breaks("dropped_patches_have_no_influence", "encoders")
class Peeking(Small):
    def forward(self, image, context=None, hidden=None):
        seen = image.mean(dim=(1, 2, 3))[:, None, None]
        return self.changed(image, context, hidden, lambda x: x + seen)


@breaks("hidden_patches_have_no_influence", "encoders")
class PeekingBehind(ViT):
    dense = Encoder.dense

    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim, depth=1, num_heads=2, mask_token=True)

    def forward(self, image, context=None, hidden=None):
        seen = 0 if hidden is None else image.mean(dim=(1, 2, 3))[:, None, None]
        tokens = super().forward(image, context, hidden)
        return Tokens(tokens.patches + seen, tokens.prefix, tokens.index)


@breaks("images_do_not_influence_each_other", "encoders")
class Sociable(Small):
    def forward(self, image, context=None, hidden=None):
        return self.changed(image, context, hidden, lambda x: x + x.mean(dim=0))


@breaks("every_visible_patch_is_read", "encoders")
class Blind(Small):
    def forward(self, image, context=None, hidden=None):
        image = image.clone()
        image[:, :, -4:, -4:] = 0
        return super().forward(image, context, hidden)


@breaks("every_parameter_is_trained", "encoders")
class Idle(Small):
    def __init__(self, geometry, *, embed_dim: int = 16) -> None:
        super().__init__(geometry, embed_dim=embed_dim)
        self.idle = nn.Parameter(torch.zeros(3))

    def backbone(self, grid=None):
        backbone = super().backbone(grid)
        backbone.vit.idle.requires_grad_(False)
        return backbone


@breaks("places_and_layers_agree_with_forward", "encoders")
class OtherAt(Small):
    def at(self, image, context, hidden, wanted):
        tokens = super().at(image, context, hidden, wanted)
        return Tokens(1.1 * tokens.patches, tokens.prefix, tokens.index)


@breaks("places_and_layers_agree_with_forward", "encoders")
class OtherLayers(Small):
    def layers(self, image):
        tokens = self(image)
        return (Tokens(1.1 * tokens.patches, tokens.prefix, tokens.index),)


@breaks("its_backbone_starts_from_it", "encoders")
class Forgetful(Small):
    def backbone(self, grid=None):
        backbone = super().backbone(grid)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.fill_(0.1)
        return backbone


@breaks("its_backbone_starts_from_it", "encoders")
class Sharing(Small):
    def backbone(self, grid=None):
        backbone = super().backbone(grid)
        backbone.vit.norm = self.norm
        return backbone


@breaks("its_backbone_starts_from_it", "encoders")
class Ungrouped(Small):
    def backbone(self, grid=None):
        backbone = super().backbone(grid)
        groups = backbone.layer_groups
        backbone.layer_groups = lambda: groups()[:-1]
        return backbone


@breaks("a_foreign_grid_is_refused_or_works", "encoders")
class Immovable(Small):
    def backbone(self, grid=None):
        return super().backbone(None)


@breaks("weights_of_another_grid_fit", "encoders")
class Fixed(Small):
    def regrid(self, tensors, grid):
        return {f"old.{name}": tensor for name, tensor in tensors.items()}


# --------------------------------------------------------------------------- encoders, dense tasks


class Mapping(Small):
    dense = ViT.dense


@breaks("dense_maps_are_as_declared", "encoders")
class WideMaps(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        dense.levels = (*dense.levels[:3], Level(17, 4))
        return dense


@breaks("dense_maps_are_as_declared", "encoders")
class WideFeatures(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        dense.last = Level(17, 4)
        return dense


@breaks("dense_features_are_the_encoders", "encoders")
class OtherFeatures(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        dense.norm = nn.Identity()
        return dense


@breaks("dense_maps_lie_in_place", "encoders")
class Mirrored(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        forward = dense.forward
        dense.forward = lambda image: tuple(each.flip(3) for each in forward(image))
        return dense


@breaks("dense_starts_from_the_encoder", "encoders")
class ForgetfulMaps(Mapping):
    def dense(self, grid=None):
        dense = Mapping(Geometry(self.grid)).dense(grid)
        dense.features = super().dense(grid).features
        return dense


@breaks("dense_starts_from_the_encoder", "encoders")
class SharingMaps(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        dense.vit.blocks = self.blocks
        return dense


@breaks("dense_groups_hold_what_is_trained", "encoders")
class UngroupedMaps(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        groups = dense.layer_groups
        dense.layer_groups = lambda: groups()[1:]
        return dense


@breaks("dense_groups_hold_what_is_trained", "encoders")
class IdleNorm(Mapping):
    def dense(self, grid=None):
        dense = super().dense(grid)
        dense.norm.requires_grad_(True)
        groups = dense.layer_groups
        dense.layer_groups = lambda: [*groups(), list(dense.norm.parameters())]
        return dense


@breaks("dense_takes_or_refuses_oblong_grids", "encoders")
class ImmovableMaps(Mapping):
    def dense(self, grid=None):
        return super().dense(None)


@breaks("dense_takes_or_refuses_oblong_grids", "encoders")
class Curt(Mapping):
    def dense(self, grid=None):
        if grid is not None:
            raise RecipeError("not for this grid.")
        return super().dense(None)


@breaks("weights_of_a_unit_are_read_in_it_alone", "encoders")
class Prying(Small):
    def forward(self, image, context=None, hidden=None):
        scale = 1 + self.blocks[0].mlp.fc1.weight.mean()
        return self.changed(image, context, hidden, lambda x: x * scale)


@breaks("weights_of_a_unit_are_read_in_it_alone", "encoders")
class Bypassing(Small):
    def forward(self, image, context=None, hidden=None):
        return self.changed(image, context, hidden, self.blocks[0].norm2)


# ---------------------------------------------------------------------------------------- targets


class Values(Pixels):
    def __init__(self, geometry) -> None:
        super().__init__(geometry)


@breaks("targets_are_as_declared", "targets")
class Wide(Values):
    def __init__(self, geometry) -> None:
        super().__init__(geometry)
        self.width = Width("vector", self.width.size + 1)


@breaks("targets_are_as_declared", "targets")
class NoClass(Values):
    def __init__(self, geometry) -> None:
        super().__init__(geometry)
        self.width = Width("class", 3)

    def forward(self, batch, encoder):
        return batch.mask.target


@breaks("targets_follow_their_positions", "targets")
class Sorted(Values):
    ragged = False

    def forward(self, batch, encoder):
        order = batch.mask.target.argsort(dim=2)
        values = super().forward(batch, encoder)
        return values.gather(2, order[..., None].expand_as(values))


@breaks("targets_of_an_image_are_its_own", "targets")
class Relative(Values):
    def forward(self, batch, encoder):
        values = super().forward(batch, encoder)
        return values + batch.image.mean()


@breaks("padding_is_harmless_if_declared", "targets")
class Padded(Values):
    def forward(self, batch, encoder):
        values = super().forward(batch, encoder)
        return values + values.mean(dim=2, keepdim=True)


@breaks("needs_no_encoder_if_declared", "targets")
class Asking(Values):
    def forward(self, batch, encoder):
        with torch.no_grad():
            return super().forward(batch, encoder) + encoder.cls_token.mean()


@breaks("needs_no_encoder_if_declared", "targets")
class Drawing(Values):
    def forward(self, batch, encoder):
        noise = torch.rand(1) if self.training else 0.0
        return super().forward(batch, encoder) + 0 * noise


@breaks("trains_nothing_of_its_own", "targets")
class Learning(Values):
    def __init__(self, geometry) -> None:
        super().__init__(geometry)
        self.factor = nn.Parameter(torch.ones(()))


@breaks("trains_nothing_of_its_own", "targets")
class Graph(Values):
    def forward(self, batch, encoder):
        leaf = torch.zeros((), requires_grad=torch.is_grad_enabled())
        return super().forward(batch, encoder) + leaf


@breaks("what_it_prepared_is_found_again", "targets")
class Diligent(Values):
    def prepare(self, images, workdir, *, device, say):
        return Preparation("nothing", 0.0, cached=False)


# ------------------------------------------------------------------------------------------ heads


class Attending(Head):
    def __init__(self, geometry) -> None:
        super().__init__()
        dim = geometry.embed_dim
        self.register_buffer("positions", sincos(geometry.grid, dim))
        self.mix = nn.Linear(dim, dim)
        self.predictors = nn.ModuleDict(
            {name: nn.Linear(dim, width.size) for name, width in geometry.outputs.items()}
        )

    def query(self, mask):
        return self.positions[mask.target[:, 0]]  # (B, M, D)

    def gathered(self, tokens, mask):
        keys = self.mix(tokens.patches)
        scores = self.query(mask) @ keys.transpose(1, 2) * keys.shape[-1] ** -0.5
        return (scores.softmax(-1) @ keys + self.query(mask))[:, None]  # (B, 1, M, D)

    def forward(self, tokens, mask):
        x = self.gathered(tokens, mask)
        return {name: predict(x) for name, predict in self.predictors.items()}


@breaks("predictions_are_those_asked_for", "heads")
class Talkative(Attending):
    def forward(self, tokens, mask):
        found = super().forward(tokens, mask)
        return {**found, "more": next(iter(found.values()))}


class Wider(Attending):
    """Predicts one value more than its vectors have.

    Source: own.
    """

    def __init__(self, geometry) -> None:
        vectors = {name: w for name, w in geometry.outputs.items() if w.kind == "vector"}
        wider = {name: Width("vector", width.size + 1) for name, width in vectors.items()}
        super().__init__(dataclasses.replace(geometry, outputs={**geometry.outputs, **wider}))
        self.own_widths = wider

    def translate(self, prediction, target):
        return nn.functional.pad(target, (0, 1))


@breaks("predictions_are_those_asked_for", "heads")
class WiderInSecret(Wider):
    def __init__(self, geometry) -> None:
        super().__init__(geometry)
        self.own_widths = {}


@breaks("translated_targets_fit_and_train_nothing", "heads")
class Untranslated(Wider):
    def translate(self, prediction, target):
        return target


@breaks("translated_targets_fit_and_train_nothing", "heads")
class Chasing(Wider):
    def translate(self, prediction, target):
        return super().translate(prediction, target) * self.mix.weight[0, 0]


@breaks("every_token_has_influence", "heads")
class Ignorant(Attending):
    def gathered(self, tokens, mask):
        rest = Tokens(tokens.patches[:, 1:], tokens.prefix, tokens.index[:, 1:])
        return super().gathered(rest, mask)


@breaks("predictions_know_their_position", "heads")
class Placeless(Attending):
    def query(self, mask):
        return self.positions[:1].expand(*mask.target[:, 0].shape, -1)


@breaks("predictions_follow_their_positions", "heads")
class SortedPredictions(Attending):
    def query(self, mask):
        return self.positions[mask.target[:, 0].sort(dim=1).values]


@breaks("predictions_of_an_image_are_its_own", "heads")
class Averaging(Attending):
    def gathered(self, tokens, mask):
        x = super().gathered(tokens, mask)
        return x + x.mean(dim=0)


@breaks("padded_positions_are_harmless_if_declared", "heads")
class Mixing(Attending):
    ragged = True

    def gathered(self, tokens, mask):
        x = super().gathered(tokens, mask)
        return x + x.mean(dim=2, keepdim=True)


@breaks("every_weight_is_trained", "heads")
class IdleHead(Attending):
    def __init__(self, geometry) -> None:
        super().__init__(geometry)
        self.idle = nn.Parameter(torch.zeros(3))


# ----------------------------------------------------------------------------------------- losses


class Square2(Loss):
    def __init__(self, geometry) -> None:
        super().__init__()

    def forward(self, prediction, target, valid):
        kept = torch.where(valid[..., None], prediction.float(), 0.0)
        return (kept - target).square().mean(dim=-1)


@breaks("values_are_float32_for_each_position", "losses")
class Half(Square2):
    def forward(self, prediction, target, valid):
        return super().forward(prediction, target, valid).to(prediction.dtype)


@breaks("values_are_float32_for_each_position", "losses")
class Reduced(Square2):
    def forward(self, prediction, target, valid):
        return super().forward(prediction, target, valid).mean()


@breaks("invalid_positions_have_no_influence", "losses")
class Spread(Square2):
    def forward(self, prediction, target, valid):
        found = super().forward(prediction, target, valid)
        return found / prediction.detach().float().abs().mean()


@breaks("a_gradient_reaches_every_prediction", "losses")
class Clipped(Square2):
    def forward(self, prediction, target, valid):
        found = super().forward(prediction, target, valid)
        return torch.where(found > found.median(), found.detach(), found)


@breaks("metrics_are_single_numbers", "losses")
class Telling(Square2):
    def metrics(self, prediction, target, valid):
        return {"each": prediction.mean(dim=-1)}


# ------------------------------------------------------------------------------------------ tests


def verdicts(register, kind, cls):
    register(kind, "it", cls)
    return list(examine("mimkit-tiny"))


@pytest.mark.parametrize(("name", "kind", "cls"), BROKEN)
def test_a_broken_part_fails_its_check_and_no_other(register, name, kind, cls):
    found = verdicts(register, kind, cls)
    failed = [verdict for verdict in found if verdict.outcome == "failed"]
    assert [verdict.check.name for verdict in failed] == [name], failed
    (verdict,) = failed
    assert verdict.reason
    assert verdict.advice
    after = found[found.index(verdict) + 1 :]
    assert all((one.outcome == "not run") == verdict.check.gate for one in after)


@pytest.mark.parametrize("entry", entries("heads"), ids=lambda entry: entry.name)
def test_a_check_finds_the_same_alone_as_after_others(entry, tmp_path):
    """Under pytest-xdist any check may be the first of its process."""
    for check in checks_of(entry):
        (tmp_path / check.name).mkdir()
        verdict = Examination(entry, tmp_path / check.name).make(check)
        assert verdict.outcome != "failed", verdict


def test_there_is_a_broken_part_for_every_check():
    covered = {case.values[0] for case in BROKEN}
    elsewhere = {"loads", "can_be_built", "trains_and_resumes"}
    assert covered | elsewhere == {check.name for check in CHECKS}


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("maskers", RandomMasker),
        ("encoders", ViT),
        ("targets", Latent),
        ("targets", Pixels),
        ("heads", LinearHead),
        ("heads", Wider),
        ("losses", MSE),
    ],
)
def test_sound_parts_pass(register, kind, cls):
    found = verdicts(register, kind, cls)
    assert {verdict.outcome for verdict in found} <= {"passed", "not applicable"}
    assert len(found) >= 10


def test_every_check_says_what_breaks_for_a_user():
    for check in CHECKS:
        assert check.harm.endswith("."), check.name
        assert len({c.name for c in CHECKS}) == len(CHECKS)


@pytest.mark.parametrize("value", ["nowhere_at_all:Thing", Tokens])
def test_what_does_not_load_is_told_and_nothing_else_is_tried(register, value):
    register("maskers", "it", value)
    first, *rest = examine("mimkit-tiny")
    assert (first.check.name, first.outcome) == ("loads", "failed")
    assert "mimkit-tiny" in first.reason
    assert {verdict.outcome for verdict in rest} == {"not run"}


def test_a_part_that_lacks_a_method_is_told(register):
    class Half(Masker):
        """It samples nothing.

        Source: own.
        """

        def __init__(self, geometry) -> None:
            pass

    Half.__qualname__ = "HalfMasker"
    globals()["HalfMasker"] = Half
    found = verdicts(register, "maskers", Half)
    (failed,) = [verdict for verdict in found if verdict.outcome == "failed"]
    assert failed.check.name == "is_made_in_miniature"
    assert "sample" in failed.reason


def test_an_unknown_distribution_is_answered_with_the_nearest(register):
    register("maskers", "it", Good)
    with pytest.raises(PluginError, match=r"Did you mean 'mimkit-tiny'\?"):
        list(examine("mimkit-tny"))
    assert is_distribution("mimkit_tiny")
    assert not is_distribution("mimkit-tny")


# ---------------------------------------------------------------------------------------- recipes


class Counting(Small):
    """Each step differs from the last by what no checkpoint holds.

    Args:
        embed_dim: D.

    Source: own.
    """

    calls = 0

    def forward(self, image, context=None, hidden=None):
        self.calls += 1
        calls = self.calls
        return self.changed(image, context, hidden, lambda x: x * (1 + 0.1 * calls))


RECIPE = """
name = "it_shapes"
[data]
name = "shapes"
image_size = 16
patch_size = 4
[masker]
part = "random"
mask_ratio = 0.5
[encoder]
part = "{encoder}"
[targets.latent]
part = "latent"
[head]
part = "{head}"
[losses.latent]
part = "mse"
[train]
total_steps = 100
batch_size = 8
optimizer = "adamw"
lr = 1e-3
"""


@pytest.fixture
def ship(register, tmp_path, monkeypatch):
    """Registers what a recipe names, and a package with that recipe."""

    def make(text):
        package = tmp_path / "mimkit_tiny_recipes"
        (package / "recipes").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "recipes" / "it_shapes.toml").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        register("maskers", "random", RandomMasker, distribution="mimkit")
        register("encoders", "small", Small, distribution="mimkit")
        register("encoders", "counting", Counting, distribution="mimkit")
        register("targets", "latent", Latent, distribution="mimkit")
        register("heads", "attending", Attending, distribution="mimkit")
        register("losses", "mse", MSE, distribution="mimkit")
        register("datasets", "shapes", "mimkit.data.registered:SHAPES", distribution="mimkit")
        register("datasets", "cifar10", "mimkit.data.registered:CIFAR10", distribution="mimkit")
        register("recipes", "it", "mimkit_tiny_recipes")
        return {v.check.name: v for v in examine("mimkit-tiny")}

    return make


def test_a_sound_recipe_is_built_trained_and_resumed(ship):
    found = ship(RECIPE.format(encoder="small", head="attending"))
    assert {name: verdict.outcome for name, verdict in found.items()} == {
        "loads": "passed",
        "can_be_built": "passed",
        "trains_and_resumes": "passed",
    }


def test_a_recipe_that_names_what_is_not_there_fails(ship):
    found = ship(RECIPE.format(encoder="small", head="atending"))
    assert found["can_be_built"].outcome == "failed"
    assert "Did you mean 'attending'?" in found["can_be_built"].reason
    assert found["trains_and_resumes"].outcome == "not run"


def test_a_recipe_that_does_not_resume_fails(ship):
    found = ship(RECIPE.format(encoder="counting", head="attending"))
    assert found["can_be_built"].outcome == "passed"
    assert found["trains_and_resumes"].outcome == "failed"
    assert "resumed" in found["trains_and_resumes"].reason


def test_a_recipe_on_other_images_is_only_built(ship):
    text = RECIPE.format(encoder="small", head="attending").replace('"shapes"', '"cifar10"', 1)
    text = text.replace("image_size = 16", "image_size = 32")
    found = ship(text)
    assert found["can_be_built"].outcome == "passed"
    assert found["trains_and_resumes"].outcome == "not applicable"


# ------------------------------------------------------------------------------- table and pytest


def test_names_of_checks_and_parts_stay_whole_in_80_columns(capsys):
    entry = Entry("encoders", "patch_resnet", "mimkit-tiny", "1.0", "x:Y")
    reason = "some option has no default"
    verdicts = [Verdict(entry, check, "not applicable", reason) for check in CHECKS]
    Console(width=80).print(_table(verdicts))
    shown = capsys.readouterr().out
    assert all(check.name in shown for check in CHECKS)
    assert "encoder patch_resnet" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_table_says_what_failed_why_and_what_to_do(register, capsys):
    register("maskers", "it", Leaking)
    register("maskers", "other", Good)
    console = Console(width=120, force_terminal=False)
    with pytest.raises(PluginError, match=r"mimkit-tiny fails 1 of 32 checks"):
        check_distribution("mimkit-tiny", console)
    text = capsys.readouterr().out
    assert "masker it: what_is_predicted_is_not_seen" in text
    assert "To do: Take the context from what is not masked" in text
    assert "Else: The loss falls to nothing, and nothing is learned." in text


def test_a_sound_distribution_is_ok(register, capsys):
    register("maskers", "random", RandomMasker)
    check_distribution("mimkit-tiny", Console(width=120))
    assert capsys.readouterr().out.endswith("ok\n")


def collected(test):
    """The cases of a test as pytest would run them."""
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return mark.args[1]


class Folders:
    def __init__(self, path):
        self.path = path

    def mktemp(self, name):
        folder = self.path / name
        folder.mkdir()
        return folder


def test_a_plugins_test_file_is_one_line(register, tmp_path):
    register("maskers", "it", Leaking)
    test = conformance("mimkit-tiny")
    outcomes = {}
    for case in collected(test):
        try:
            test(*case.values, Folders(tmp_path))
        except pytest.fail.Exception as error:
            outcomes[case.id] = str(error)
    assert list(outcomes) == ["masker it: what_is_predicted_is_not_seen"]
    assert "Else: The loss falls to nothing" in next(iter(outcomes.values()))


def test_a_failure_may_be_expected_but_must_exist(register):
    register("maskers", "it", Leaking)
    name = "masker it: what_is_predicted_is_not_seen"
    test = conformance("mimkit-tiny", expected_failures={name: "an autoencoder on purpose"})
    (marked,) = [case for case in collected(test) if case.marks]
    assert marked.id == name
    assert marked.marks[0].kwargs == {"strict": True, "reason": "an autoencoder on purpose"}
    with pytest.raises(PluginError, match="there is no 'masker it: no_such_check'"):
        conformance("mimkit-tiny", expected_failures={"masker it: no_such_check": "?"})


def test_options_in_miniature_must_be_options(register):
    class Wrong(Good):
        """It.

        Args:
            mask_ratio: how many.

        Source: own.
        """

        miniature: ClassVar = {"depth": 1}

    Wrong.__qualname__ = "WrongMiniature"
    globals()["WrongMiniature"] = Wrong
    found = verdicts(register, "maskers", Wrong)
    (failed,) = [verdict for verdict in found if verdict.outcome == "failed"]
    assert failed.check.name == "keeps_the_constructor_rule"
    assert "'miniature' sets depth" in failed.reason
    assert inspect.getdoc(Wrong)
