"""Features on disk: what they lose by 16 bits, where they lie and when they end."""

import dataclasses
import errno
import os
import shutil
from collections import namedtuple

import pytest
import torch

from mimkit.errors import DataError
from mimkit.evaluate.features import extract_layers
from mimkit.evaluate.linear import LinearProbe
from mimkit.evaluate.logistic import fit
from mimkit.evaluate.on_disk import OnDisk

CPU = torch.device("cpu")
HALF = 2.0**-11  # the most that rounding to half precision changes a number by, as a share of it


def stored(folder, values, batch=16):
    table = OnDisk(folder, *values.shape)
    for start in range(0, len(values), batch):
        table[start : start + batch] = values[start : start + batch]
    return table


@pytest.mark.parametrize("mean", [0.0, 3.0, -1e4])
@pytest.mark.parametrize("deviation", [1e-3, 1.0, 500.0])
def test_a_number_keeps_its_distance_from_the_mean_to_half_precision(tmp_path, mean, deviation):
    noise = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    values = mean + deviation * noise
    found = stored(tmp_path, values).to(CPU)
    distance = (values - values[:16].mean(0)).abs()
    float32 = 4 * torch.finfo(torch.float32).eps * abs(mean)
    assert ((found - values).abs() <= HALF * distance + float32 + 1e-7 * deviation).all()
    assert found.dtype == torch.float32


def test_columns_that_begin_all_alike_are_kept_as_they_are(tmp_path):
    values = torch.ones(40, 3)
    values[:, 1] = 0.0
    values[:, 2] = 7.0
    values[30, 2] = 20.0
    torch.testing.assert_close(stored(tmp_path, values).to(CPU), values, rtol=1e-3, atol=0)


def test_the_file_has_no_name_so_that_none_is_left(tmp_path):
    table = stored(tmp_path / "new", torch.randn(20, 4))
    assert list((tmp_path / "new").iterdir()) == []
    assert table.to(CPU).shape == (20, 4)


def test_many_features_of_all_layers_lie_on_disk_and_few_in_memory(subject, monkeypatch):
    index = torch.arange(60)

    def features(most):
        monkeypatch.setattr("mimkit.evaluate.features.MEMORY_BYTES", most)
        encoder = subject.pretrainer.encoder
        return extract_layers(encoder, subject, subject.train, index, ("mean", "cls"), layers="all")

    needed = 60 * 2 * 2 * 16 * 4  # images, layers, pools, width, bytes
    small, large = features(needed), features(needed - 1)
    for some, many in zip(small, large, strict=True):
        for pool in ("mean", "cls"):
            assert isinstance(some[pool], torch.Tensor)
            assert isinstance(many[pool], OnDisk)
            apart = (many[pool].to(CPU) - some[pool]).abs()
            assert (apart <= 1e-3 * (some[pool] - some[pool].mean(0)).abs() + 1e-5).all()


def test_half_precision_changes_hardly_a_probability(tmp_path):
    """Of two classes that overlap, the case in which a small change tells most."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    features = 5 + 0.1 * torch.randn(400, 20, generator=generator)
    features[:, 0] += 0.1 * labels
    probes = [
        fit(table, labels, 2, weight_decay=1e-3)
        for table in (features, stored(tmp_path, features, 64).to(CPU))
    ]
    one, other = (probe(features).softmax(1) for probe in probes)
    assert (one - other).abs().max() < 2e-3


@pytest.mark.slow
def test_a_probe_of_features_on_disk_finds_what_one_in_memory_finds(
    subject, geometry, monkeypatch, tmp_path
):
    evaluator = LinearProbe(geometry, layers="all", pools=("mean", "cls_mean"))
    before = evaluator.run(subject)
    monkeypatch.setattr("mimkit.evaluate.features.MEMORY_BYTES", 0)
    after = evaluator.run(dataclasses.replace(subject, workdir=tmp_path / "other"))
    for one, other in zip(before, after, strict=True):
        assert abs(one.value - other.value) <= 1 / 40  # of 40 images
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["cells.jsonl"]


def test_a_disk_without_room_is_told_before_anything_is_encoded(subject, geometry, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("mimkit.evaluate.features.MEMORY_BYTES", 1000)  # one image fits
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100))
    seen = []
    monkeypatch.setattr(OnDisk, "__setitem__", lambda *_: seen.append(1))
    with pytest.raises(DataError, match=r"need 0\.0 GB on this disk, but 0\.0 GB are free. Free"):
        LinearProbe(geometry, layers="all").run(subject)
    assert not seen


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room")
def test_a_disk_that_others_fill_is_told_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match="the disk is full"):
        OnDisk(tmp_path, 10, 10)
