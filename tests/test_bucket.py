"""Shards in a bucket and on a server, both here on loopback, are the shards of a folder."""

import functools
import http.server
import shutil
import sys
import threading

import numpy as np
import pytest
from test_shards import write_set

from mimkit.data.intake import urls
from mimkit.data.intake.columns import Asked
from mimkit.data.intake.locate import Wanted, locate
from mimkit.data.intake.urls import ShardFile, download, find
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


@pytest.fixture
def site(folder):
    pytest.importorskip("aiohttp")
    handler = functools.partial(Silent, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


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


def test_a_server_holds_what_its_folder_does_and_what_is_missing_is_named(site, folder):
    assert_same(f"{site}/{{train,test}}-{{0000..0002}}.tar", folder)
    train, test = opened(f"{site}/train-{{0000..0003}}.tar")
    assert len(train) + len(test) == 12
    assert any(item.path == f"{site}/train-0003.tar" for item in train.unread())


def test_a_shard_that_is_no_longer_there_is_named(bucket):
    fsspec = pytest.importorskip("fsspec")
    opened(bucket)
    fsspec.filesystem("s3", skip_instance_cache=True).rm(f"{BUCKET}/sets/train-0001.tar")
    train, _ = opened(f"{bucket}/train-{{0000..0002}}.tar")
    assert any(item.path == f"{bucket}/train-0001.tar" for item in train.unread())


def test_a_server_that_fails_for_a_while_is_asked_again(tmp_path, folder, monkeypatch):
    calls = []

    class Failing:
        def get_file(self, path, to):
            calls.append(path)
            if len(calls) < 3:
                raise ConnectionError("not now")
            shutil.copyfile(folder / "train-0000.tar", to)

    monkeypatch.setattr(urls, "_file_system", lambda url: (Failing(), url))
    size = (folder / "train-0000.tar").stat().st_size
    file = ShardFile("s3://b/train-0000.tar", size, "")
    urls.again(lambda: download(file, tmp_path / "copy"))
    assert len(calls) == 3
    assert (tmp_path / "copy").read_bytes() == (folder / "train-0000.tar").read_bytes()
    with pytest.raises(EOFError, match="bytes came of"):
        download(ShardFile(file.url, size + 1, ""), tmp_path / "short")


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(DataError, match=r"must begin with a protocol that fsspec knows.*'s3'"):
        find("s33://bucket/a.tar", (".tar",))


def test_an_empty_bucket_is_told_with_what_to_do(bucket, tmp_path):
    wanted = Wanted("data.name", f"{bucket}/none/", None, None, cache=tmp_path)
    assert wanted.asked == Asked()
    with pytest.raises(DataError, match=r"mimkit pack FOLDER --out SHARDS|is not there"):
        locate(wanted)


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tenacity", None)
    with pytest.raises(DataError, match=r"pip install 'mimkit\[remote\]'"):
        find("s3://bucket/a.tar", (".tar",))
