import dataclasses

import pytest
import torch
from rich.console import Console
from torch import nn

from mimkit import Tokens
from mimkit.data.opening import open_sources
from mimkit.evaluate.features import extract, extract_layers, whole
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.current import subject as subject_of
from mimkit.recipe.registry import entries, load
from mimkit.recipe.schema import load as load_recipe
from mimkit.recipe.sections import DataSection
from mimkit.study import measuring
from mimkit.train.distributed import World

INDEX = torch.tensor([7, 3, 11, 0, 5])


def layers_of(subject, index=INDEX, pools=("mean", "cls")):
    encoder = subject.pretrainer.encoder
    return extract_layers(encoder, subject, subject.train, index, pools, layers="all")


def test_rows_follow_the_index_however_images_are_batched(subject, monkeypatch):
    whole = layers_of(subject)
    monkeypatch.setattr("mimkit.evaluate.features.FEATURE_BATCH", 2)
    torch.testing.assert_close(layers_of(subject), whole)
    turned = layers_of(subject, INDEX.flip(0))
    for layer, vectors in enumerate(turned):
        for pool, features in vectors.items():
            torch.testing.assert_close(features.flip(0), whole[layer][pool])


def test_the_last_layer_is_what_features_give(subject):
    last = layers_of(subject)[-1]
    for pool, features in last.items():
        alone = extract(
            subject.pretrainer.encoder, subject, whole(subject, subject.train, INDEX), pool
        )
        torch.testing.assert_close(alone, features)


def test_layers_may_differ_in_width(subject, monkeypatch):
    def layers(image):
        flat = image.flatten(1)
        index = torch.zeros(len(image), 1, dtype=torch.int64)
        return tuple(Tokens(flat[:, None, :w], flat[:, None, :w], index) for w in (3, 8))

    monkeypatch.setattr(subject.pretrainer.encoder, "layers", layers)
    assert [vectors["cls"].shape for vectors in layers_of(subject)] == [(5, 3), (5, 8)]


def test_half_precision_tokens_are_kept_in_float32(subject, monkeypatch):
    encoder = subject.pretrainer.encoder
    encode = encoder.features

    def features(image):
        tokens = encode(image)
        return dataclasses.replace(tokens, patches=tokens.patches.bfloat16())

    monkeypatch.setattr(encoder, "features", features)
    assert extract(encoder, subject, whole(subject, subject.train, INDEX)).dtype == torch.float32


def test_the_encoder_is_used_in_evaluation_mode_and_left_as_it_was(subject):
    encoder = subject.pretrainer.encoder.train()
    torch.testing.assert_close(layers_of(subject), layers_of(subject))  # despite drop_path
    assert all(module.training for module in encoder.modules())


OPTIONS = {
    "attentive_probe": {"total_steps": 1, "lrs": (0.1,), "num_test_images": 10},
    "finetune": {"label_fractions": (1.0,), "seeds": 1, "total_steps": 1, "lrs": (0.1,)},
    "health": {"num_images": 12, "lidar_images": 6, "lidar_renderings": 2},
    "heldout": {"num_images": 8},
    "knn": {"num_images": 20, "num_test_images": 10},
    "knn_consistency": {"num_images": 10},
    "linear_probe": {"layers": "all", "weight_decays": (0.1,), "num_test_images": 10},
    "segmentation": {"seeds": 1, "total_steps": 1, "batch_size": 4, "num_test_images": 4},
    "detection": {
        **{"seeds": 1, "total_steps": 1, "batch_size": 2, "num_test_images": 4},
        **{"fpn_channels": 16, "head_width": 16, "num_sampled": 8},
    },
}
SAY_THEMSELVES = {"finetune", "segmentation", "detection"}
"""Those that train a network, in a precision of their own."""


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)],
)
@pytest.mark.parametrize("entry", entries("evaluators"), ids=lambda entry: entry.name)
def test_every_evaluator_computes_in_the_recipes_precision(
    subject, geometry, entry, precision, expected
):
    seen = []

    def watched(pretrainer):
        # What is left alone by autocast, such as norms, comes after it.
        pretrainer.encoder.patch_embed.proj.register_forward_hook(
            lambda _, __, found: seen.append(found.dtype)
        )
        return pretrainer

    options = dict(OPTIONS[entry.name])
    if entry.name in SAY_THEMSELVES:
        options["precision"] = precision
    if entry.name == "finetune":
        options["recompute_batch_norm"] = False
    if load(entry).needs_masks or load(entry).needs_objects:
        section = DataSection(
            name="objects", image_size=32, patch_size=4, num_images=20, num_test_images=10
        )
        train, test = open_sources(section)
        subject = dataclasses.replace(subject, train=train, test=test)
    watched(subject.pretrainer)
    fresh = subject.fresh
    subject = dataclasses.replace(
        subject, precision=precision, fresh=lambda seed: watched(fresh(seed))
    )
    results = load(entry)(geometry, **options).run(subject)
    assert results
    assert set(seen) == {expected}


def test_evaluators_of_a_run_get_the_recipes_precision(tiny, tmp_path):
    recipe = load_recipe(str(tiny), overrides=["train.precision=bfloat16"])
    folder, world = RunFolder(tmp_path / "run", writable=False), World(0, 1, torch.device("cpu"))
    judged = subject_of(open_run(recipe, folder, world, Console(quiet=True)), 0)
    assert judged.precision == "bfloat16"
    with judged.autocast():
        assert torch.is_autocast_enabled("cpu")


def test_a_comparison_times_encoder_and_fine_tuning_in_the_recipes_precision(tiny, tmp_path):
    recipe = load_recipe(str(tiny), overrides=["train.precision=bfloat16"])
    folder, world = RunFolder(tmp_path / "run", writable=False), World(0, 1, torch.device("cpu"))
    current = open_run(recipe, folder, world, Console(quiet=True))
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, found: seen.append(found.dtype) if type(module) is nn.Conv2d else None
    )
    image = current.heldout_batch(2).image
    with hook:
        seconds, _ = measuring._encode(current, image)
        seconds += measuring._train(current, image)
    assert seconds > 0
    assert set(seen) == {torch.bfloat16}


def test_features_of_another_precision_are_measured_anew(subject, geometry):
    evaluator = load(next(e for e in entries("evaluators") if e.name == "linear_probe"))(
        geometry, weight_decays=(0.1,)
    )
    cells = subject.workdir / "cells.jsonl"
    evaluator.run(subject)
    before = len(cells.read_text().splitlines())
    evaluator.run(dataclasses.replace(subject, precision="auto"))
    assert len(cells.read_text().splitlines()) == before  # on a CPU it means float32
    evaluator.run(dataclasses.replace(subject, precision="bfloat16"))
    assert len(cells.read_text().splitlines()) == 2 * before
