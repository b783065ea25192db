"""Layer-wise learning rates of every encoder, against BEiT's rule and timm's groups."""

import pytest
import timm
from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.beit import Beit
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import nn

from mimkit import Geometry, Grid
from mimkit.evaluate.classifier import Classifier, layer_scales
from mimkit.recipe import registry
from mimkit.recipe.sections import TrainSection
from mimkit.train.optim import make_optimizer

DECAY = 0.65
CLASSES = 10
GRID = Grid(2, 2, 8)
DEPTH = 3
SIZES = {"embed_dim": 24, "depth": DEPTH, "num_heads": 2}
RESNET = {"width": 8, "depths": (1, 2, 1, 2)}
TRANSFORMERS = {
    "vit": [
        SIZES,
        {**SIZES, "positions": "learned", "mask_token": True, "layer_scale": 0.1},
        {**SIZES, "class_token": True, "pool": "cls"},
    ],
    "beit_vit": [
        {**SIZES, "positions": positions, "layer_scale": scale}
        for positions, scale in (("absolute", None), ("relative", 0.1), ("relative_per_block", 0.1))
    ],
    "cae_vit": [{**SIZES, "layer_scale": 0.1}],
}
TIMM = [{"model": name, "mask_token": True} for name in ("test_vit", "test_resnet")]
OPTIONS = TRANSFORMERS | {
    "patch_resnet": [RESNET, {**RESNET, "stem": "imagenet"}],
    "timm": TIMM,
}


def network_of(name: str, options: dict) -> Classifier:
    (entry,) = [entry for entry in registry.entries("encoders") if entry.name == name]
    return Classifier(registry.load(entry)(Geometry(GRID), **options).backbone(), CLASSES)


def scales_of(network: Classifier) -> dict[str, float]:
    """The factor of every parameter by its name in timm, as the optimizer has it."""
    train = TrainSection(total_steps=1, batch_size=2, optimizer="adamw", lr=0.1)
    optimizer = make_optimizer(network, train, layer_scales(network.backbone, DECAY))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {
        names[id(parameter)]
        .replace("output.", "head.")
        .removeprefix("backbone.")
        .removeprefix("vit."): group.get("lr_scale", 1.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def by_timm(model: nn.Module) -> dict[str, float]:
    """What timm's own groups give each parameter of a model."""
    groups = param_groups_layer_decay(model, layer_decay=DECAY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def by_beit(name: str, num_layers: int) -> float:
    """BEiT's released rule: get_num_layer_for_vit and LayerDecayValueAssigner.

    Source: github.com/microsoft/unilm, beit/optim_factory.py and run_class_finetuning.py.
    """
    values = [DECAY ** (num_layers + 1 - i) for i in range(num_layers + 2)]
    if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed"):
        return values[0]
    if name.startswith("blocks"):
        return values[int(name.split(".")[1]) + 1]
    return values[len(values) - 1]


def test_no_encoder_is_without_an_official_rule():
    shipped = {entry.name for entry in registry.entries("encoders")}
    assert shipped == OPTIONS.keys()


@pytest.mark.parametrize(
    ("name", "options"), [(name, one) for name, all_ in TRANSFORMERS.items() for one in all_]
)
def test_transformers_follow_the_released_rule(name, options):
    scales = scales_of(network_of(name, options))
    assert scales == pytest.approx({key: by_beit(key, DEPTH) for key in scales})
    last = f"blocks.{DEPTH - 1}.mlp.fc1.weight"
    assert (scales[last], scales["head.weight"]) == pytest.approx((DECAY, 1.0))


@pytest.mark.parametrize(
    ("name", "options"), [(name, one) for name, all_ in TRANSFORMERS.items() for one in all_]
)
def test_transformers_follow_timms_groups(name, options):
    # Both of timm's classes call a norm after the pooling fc_norm, and give it the rate of the
    # head, as BEiT's code does with every closing norm.
    shared = {
        "img_size": GRID.image_size,
        "patch_size": GRID.patch_size,
        "num_classes": CLASSES,
        "global_pool": "avg",
        "init_values": options.get("layer_scale"),
        **SIZES,
    }
    if name == "vit":
        model = VisionTransformer(**shared, fc_norm=True)
    else:
        absolute = options.get("positions") == "absolute"
        model = Beit(**shared, use_abs_pos_emb=absolute, use_rel_pos_bias=not absolute)
    scales = scales_of(network_of(name, options))
    scales = {f"fc_{k}" if k.startswith("norm.") else k: v for k, v in scales.items()}
    theirs = by_timm(model)
    fixed = {"pos_embed"}  # sine-cosine positions are no parameter here
    assert theirs.keys() - scales.keys() <= fixed
    assert scales == pytest.approx({key: theirs[key] for key in scales})


@pytest.mark.parametrize("options", OPTIONS["patch_resnet"])
def test_resnets_follow_timms_groups(options):
    model = ResNetV2(
        layers=options["depths"],
        channels=tuple(options["width"] * 2**stage for stage in (2, 3, 4, 5)),
        stem_chs=options["width"],
        num_classes=CLASSES,
        preact=True,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
    )
    theirs = {
        name.replace("stem.conv.", "stem.0.").replace("head.fc.", "head."): scale
        for name, scale in by_timm(model).items()
    }
    assert scales_of(network_of("patch_resnet", options)) == pytest.approx(theirs)


@pytest.mark.parametrize("options", TIMM)
def test_models_of_timm_follow_timms_groups(options):
    size = {"img_size": GRID.image_size, "patch_size": GRID.patch_size, "fc_norm": True}
    own = {**size, "global_pool": "avg"} if "vit" in options["model"] else {}
    theirs = by_timm(timm.create_model(options["model"], num_classes=CLASSES, **own))
    ours = {"norm.": "fc_norm.", "head.": "head." if own else "fc."}  # the same, called otherwise
    found = scales_of(network_of("timm", options))
    bare = {name.removeprefix("model."): scale for name, scale in found.items()}
    scales = {
        next((new + k.removeprefix(old) for old, new in ours.items() if k.startswith(old)), k): v
        for k, v in bare.items()
    }
    assert scales == pytest.approx(theirs)
