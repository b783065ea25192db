"""Data sets in buckets and on servers: S3, HTTP, and fsspec's file system in memory."""

import functools
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tenacity
from PIL import Image

from mimkit.data.cache import folder as cache_folder
from mimkit.data.intake import remote_rows, shards, urls
from mimkit.data.intake.locate import Wanted, locate
from mimkit.data.opening import open_sources
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection

pytest.importorskip("tenacity")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urls, "_FIRST_WAIT_SECONDS", 0.001)
    fsspec.filesystem("memory").store.clear()


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (70, 70), (number % 256, 1, 2)).save(file, "PNG")
    return file.getvalue()


def tar(numbers, mode="w"):
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode=mode) as file:
        for number in numbers:
            for name, content in (("png", png(number)), ("cls", str(number % 3).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{name}")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def parquet(numbers):
    file = io.BytesIO()
    images = [{"bytes": png(k), "path": None} for k in numbers]
    pq.write_table(pa.table({"image": images, "label": [k % 3 for k in numbers]}), file)
    return file.getvalue()


def contents(kind, make):
    """Three files of five images to train on, one to test on."""
    found = {f"train-{k:03d}{kind}": make(range(5 * k, 5 * k + 5)) for k in range(3)}
    return {**found, f"test-000{kind}": make(range(50, 55))}


TARS = contents(".tar", tar)
PACKED = contents(".tar.gz", lambda numbers: tar(numbers, "w:gz"))
TABLES = contents(".parquet", parquet)


def put(files, folder="memory://set"):
    for name, content in files.items():
        with fsspec.open(f"{folder}/{name}", "wb") as file:
            file.write(content)


def opened(name, **options):
    listings = locate(Wanted("data.name", name, None, None, cache=cache_folder(), **options))
    return {split: (each, each.read(cache_folder())) for split, each in listings.items()}


def held(table):
    numbers = [
        Image.open(io.BytesIO(table.content(k))).getpixel((0, 0))[0] for k in range(len(table))
    ]
    return dict(zip(numbers, [table.classes[k] for k in table.labels], strict=True))


def expected(numbers):
    return {k: str(k % 3) for k in numbers}


def copies():
    return sorted((cache_folder() / "shards" / "copies").glob("[!.]*"))


@pytest.mark.parametrize("files", [TARS, PACKED, TABLES], ids=["tar", "tar.gz", "parquet"])
def test_shards_elsewhere_are_read_as_those_here(files, monkeypatch):
    put(files)
    for _ in range(2):
        found = opened("memory://set")
        assert held(found["train"][1]) == expected(range(15))
        assert held(found["test"][1]) == expected(range(50, 55))
        assert found["train"][1].ends().tolist() == [5, 10, 15]
        assert found["train"][0].skipped == ()
    assert len(copies()) == 4
    # What is at hand is fetched from nowhere.
    table = opened("memory://set")["train"][1]
    monkeypatch.setattr(urls, "download", lambda *_: pytest.fail("fetched again"))
    assert held(table) == expected(range(15))


@pytest.mark.parametrize("files", [TARS, PACKED, TABLES], ids=["tar", "tar.gz", "parquet"])
def test_a_small_cache_holds_a_part_at_a_time(files, monkeypatch):
    put(files)
    limit = 2.5 * max(map(len, TARS.values()))
    monkeypatch.setenv("MIMKIT_CACHE_GB", str(limit / 10**9))
    for opener in (shards._opened, remote_rows._mapped):
        opener.cache_clear()
    table = opened("memory://set")["train"][1]
    for _ in range(2):
        assert held(table) == expected(range(15))
        for opener in (shards._opened, remote_rows._mapped):
            opener.cache_clear()
        assert sum(path.stat().st_size for path in copies()) <= limit


@pytest.mark.parametrize("pattern", ["train-*.tar", "train-{000..002}.tar"])
def test_patterns_choose_files(pattern):
    put(TARS)
    found = opened(f"memory://set/{pattern}")
    assert held(found["train"][1]) | held(found["test"][1]) == expected(range(15))


def test_what_a_pattern_names_and_is_not_there_is_named():
    put({name: content for name, content in TARS.items() if name != "train-001.tar"})
    listing, table = opened("memory://set/train-{000..003}.tar")["train"]
    assert [(item.path[-13:], item.reason) for item in listing.skipped] == [
        ("train-001.tar", "is missing"),
        ("train-003.tar", "is missing"),
    ]
    assert len(table) == 9
    listing, _ = opened("memory://set")["train"]
    assert [item.path[-13:] for item in listing.skipped] == ["train-001.tar"]


def test_a_shard_that_is_cut_there_is_named_and_used_as_far_as_it_goes():
    put(TARS | {"train-001.tar": TARS["train-001.tar"][:4_000]})
    listing, table = opened("memory://set")["train"]
    assert [item.reason[:6] for item in listing.skipped] == ["is cut"]
    assert set(held(table)) >= {*range(5), *range(10, 15)}


def failing(monkeypatch, error, times):
    """Lets the next downloads fail."""
    failures = []
    real = fsspec.implementations.memory.MemoryFileSystem.get_file

    def get_file(self, rpath, lpath, **options):
        if len(failures) < times:
            failures.append(rpath)
            with open(lpath, "wb") as file:
                file.write(b"half of")
            raise error
        return real(self, rpath, lpath, **options)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", get_file)
    return failures


def test_what_goes_by_is_tried_again(monkeypatch):
    put(TARS)
    failures = failing(monkeypatch, ConnectionResetError("reset"), 4)
    assert held(opened("memory://set")["train"][1]) == expected(range(15))
    assert len(failures) == 4


def test_what_stays_is_told_and_what_came_is_kept(monkeypatch):
    put(TARS)
    opened("memory://set/train-000.tar")
    kept = copies()
    failing(monkeypatch, ConnectionResetError("reset"), 10**6)
    with pytest.raises(
        DataError, match=r"train-.*tar: cannot be read: ConnectionResetError: reset"
    ):
        opened("memory://set")
    assert copies() == kept
    assert not list((cache_folder() / "shards" / "copies").glob(".*.tmp"))


def test_a_download_that_ends_early_counts_as_failed(monkeypatch):
    put(TARS)
    tries = []

    def get_file(self, rpath, lpath, **options):
        tries.append(rpath)
        with open(lpath, "wb") as file:
            file.write(self.cat_file(rpath)[:3_000])

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "get_file", get_file)
    with pytest.raises(DataError, match="3,000 bytes came of"):
        opened("memory://set/train-000.tar")
    assert len(tries) == 5


def test_missing_rights_and_files_are_not_tried_again(monkeypatch):
    put(TARS)
    failures = failing(monkeypatch, PermissionError("forbidden"), 10**6)
    with pytest.raises(DataError, match="forbidden"):
        opened("memory://set/train-000.tar")
    assert len(failures) == 1


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr(urls, "_FIRST_WAIT_SECONDS", 1.0)
    monkeypatch.setattr(tenacity.nap, "time", type("Clock", (), {"sleep": waits.append}))

    def never():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        urls.again(never)
    assert len(waits) == 4
    assert all(wait <= 2.0**k for k, wait in enumerate(waits))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("memory://nothing", r"there are none|is not there"),
        ("memory://nothing/a.tar", "there are none"),
        ("sftpp://host/a.tar", r"must begin with a protocol.*mean 'sftp'\?"),
        ("memory://set/{0..2.tar", "braces must come in pairs"),
    ],
)
def test_what_is_nowhere_is_told(name, message):
    with pytest.raises(DataError, match=message):
        opened(name)


def test_a_bucket_of_single_files_is_told_to_be_packed():
    put({"a/1.png": png(1), "b/2.png": png(2)})
    with pytest.raises(DataError, match="mimkit pack FOLDER --out SHARDS"):
        opened("memory://set")


@pytest.mark.parametrize(
    ("missing", "url"),
    # fsspec keeps what it has imported once, so the second is of no other test.
    [("tenacity", "s3://bucket/train-000.tar"), ("adlfs", "abfs://container/train-000.tar")],
)
def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch, missing, url):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DataError, match=r"pip install 'mimkit\[remote\]'"):
        opened(url)


def test_names_of_classes_lie_beside_shards_there_too():
    put(TARS | {"classes.txt": b"ant\nbee\ncow\n"})
    assert opened("memory://set")["train"][1].classes == ("ant", "bee", "cow")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_shards_on_a_server_without_ranges_are_read(tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "site").mkdir()
    for name, content in TARS.items():
        (tmp_path / "site" / name).write_bytes(content)
    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = opened(f"{address}/train-{{000..003}}.tar")
        assert held(found["train"][1]) | held(found["test"][1]) == expected(range(15))
        assert [i.path for i in found["train"][0].skipped] == [f"{address}/train-003.tar"]
        assert held(opened(address)["test"][1]) == expected(range(50, 55))
        server.shutdown()


@pytest.fixture(scope="module")
def bucket():
    """A real S3 server on loopback, with one bucket."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # of other servers
    with http.server.HTTPServer(("127.0.0.1", 0), Quiet) as free:
        port = free.server_port
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    said = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setenv(name, value)
        for _ in range(600):
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("images")
        yield "s3://images"
        server.terminate()
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("files", [TARS, PACKED, TABLES], ids=["tar", "tar.gz", "parquet"])
def test_a_bucket_is_opened_and_loader_processes_read_of_it(bucket, files, tmp_path):
    name = f"{bucket}/{tmp_path.name}"
    put(files, name)
    found = opened(name)
    assert held(found["train"][1]) == expected(range(15))
    for path in copies():
        os.remove(path)
    train, _ = open_sources(DataSection(name=name, image_size=8, patch_size=4))
    assert train.shards == (5, 10, 15)
    with pytest.raises(DataError, match=r"there are none|is not there"):
        opened(f"{bucket}/nothing")
