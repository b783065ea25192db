import dataclasses

import torch

from mimkit import Tokens
from mimkit.evaluate.features import extract, extract_layers

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
        alone = extract(subject.pretrainer.encoder, subject, subject.train, INDEX, pool)
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
    assert extract(encoder, subject, subject.train, INDEX, "mean").dtype == torch.float32


def test_the_encoder_is_used_in_evaluation_mode_and_left_as_it_was(subject):
    encoder = subject.pretrainer.encoder.train()
    torch.testing.assert_close(layers_of(subject), layers_of(subject))  # despite drop_path
    assert all(module.training for module in encoder.modules())
