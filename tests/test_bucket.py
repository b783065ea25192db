"""Shards in a bucket of a server that speaks S3 are the shards of a folder."""

import numpy as np
import pytest
from test_shards import write_set

from mimkit.data.intake import urls
from mimkit.data.intake.columns import Asked
from mimkit.data.intake.locate import Wanted, locate
from mimkit.data.opening import open_sources
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

pytest.importorskip("tenacity")
BUCKET = "images"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.setattr(urls, "_FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def folder(tmp_path):
    """Three shards of four images to train on, and three to test on."""
    return write_set(tmp_path / "shards")


@pytest.fixture(scope="module")
def s3():
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, folder, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # of other servers
    for key, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdirs(BUCKET, exist_ok=True)
    for shard in folder.glob("*.tar"):
        fs.put_file(str(shard), f"{BUCKET}/sets/{shard.name}")
    yield f"s3://{BUCKET}/sets"
    fs.rm(f"{BUCKET}/sets", recursive=True)


def opened(name):
    return open_sources(DataSection(name=str(name), image_size=8, patch_size=4))


def assert_same(one, other):
    for mine, theirs in zip(opened(one), opened(other), strict=True):
        assert mine.classes == theirs.classes
        assert mine.labels.tolist() == theirs.labels.tolist()
        for index in range(len(theirs)):
            assert np.array_equal(mine.image(index), theirs.image(index))


def test_a_bucket_holds_what_its_folder_does(bucket, folder):
    assert_same(bucket, folder)


def test_what_was_fetched_is_not_fetched_again(bucket, folder, monkeypatch):
    opened(bucket)
    monkeypatch.setattr("mimkit.data.intake.copies.download", None)
    assert_same(bucket, folder)


def test_a_shard_that_is_no_longer_there_is_named(bucket):
    fsspec = pytest.importorskip("fsspec")
    opened(bucket)
    fsspec.filesystem("s3", skip_instance_cache=True).rm(f"{BUCKET}/sets/train-0001.tar")
    train, _ = opened(f"{bucket}/train-{{0000..0002}}.tar")
    assert any(item.path == f"{bucket}/train-0001.tar" for item in train.unread())


def test_an_empty_bucket_is_told_with_what_to_do(bucket, tmp_path):
    wanted = Wanted("data.name", f"{bucket}/none/", None, None, cache=tmp_path)
    assert wanted.asked == Asked()
    with pytest.raises(DataError, match=r"mimkit pack FOLDER --out SHARDS|is not there"):
        locate(wanted)


def test_a_bucket_that_is_not_there_is_told(bucket):
    with pytest.raises(DataError, match="Not even s3://elsewhere is there"):
        opened("s3://elsewhere/sets")


def test_a_folder_that_is_not_there_is_told_with_the_nearest(bucket):
    with pytest.raises(DataError, match=rf"s3://{BUCKET} holds sets. Did you mean 'sets'"):
        opened(f"s3://{BUCKET}/sest")
