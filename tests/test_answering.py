"""What a server or bucket has against reading is told as that, with its address."""

import errno
import http.server
import socket
import threading

import pytest
from test_remote import TARS, failing, held, opened, put
from test_remote import places as places  # noqa: PLC0414 -- a fixture

from mimkit.data.cache import folder as cache_folder
from mimkit.data.intake import shards, urls
from mimkit.data.intake.answering import answering
from mimkit.data.looking import survey
from mimkit.data.opening import open_sources
from mimkit.errors import DataError
from mimkit.recipe.sections import DataSection


@pytest.fixture
def server():
    """Serves the shards; whatever else is asked for gets the status that was set last."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = TARS.get(self.path.removeprefix("/set/"))
            self.send_response(200 if content else self.server.status)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            """Stays quiet."""

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.status = 404
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}"


def nobody():
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "there are none. The server has no such file"),
        (403, "may not be read.*403.*other credentials"),
        (503, "cannot be read.*503"),
    ],
)
def test_a_web_server_answers_in_its_own_words(server, status, said):
    server.status = status
    with pytest.raises(DataError, match=said) as told:
        opened(f"{address(server)}/other/a.tar")
    assert f"{address(server)}/other/a.tar" in str(told.value)


def test_a_server_that_is_not_there_is_no_missing_file():
    url = f"http://127.0.0.1:{nobody()}/a.tar"
    with pytest.raises(DataError, match=rf"{url}: cannot be reached.*Is there a network"):
        opened(url)


def test_a_bucket_that_is_not_reached_names_the_address_to_set(monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()  # of other servers
    monkeypatch.setattr(urls, "_TRIES", 1)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody()}")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "a")
    with pytest.raises(DataError, match=r"s3://bucket/set: .*AWS_ENDPOINT_URL"):
        opened("s3://bucket/set")


def test_what_one_may_not_read_names_the_credentials(monkeypatch, server):
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    server.status = 403
    monkeypatch.setenv("AWS_ENDPOINT_URL", address(server))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(DataError, match=r"s3://bucket/a.tar: may not be read.*AWS_PROFILE"):
        opened("s3://bucket/a.tar")


@pytest.mark.parametrize("status", [403, 404])
def test_what_may_lie_beside_shards_is_not_needed(server, status):
    server.status = status
    found = opened(f"{address(server)}/set/train-{{000..002}}.tar")
    assert len(held(found["train"][1])) == 14  # of fifteen one is held out


def test_a_file_that_is_not_there_is_told_with_what_is():
    put(TARS)
    with pytest.raises(DataError, match=r"Not even memory://sett is there"):
        opened("memory://sett")
    with pytest.raises(DataError, match=r"set holds test-000.tar, train-000.tar"):
        opened("memory://set/a.tar")


def test_a_refusal_in_the_middle_of_a_look_is_no_fault_of_the_cache(monkeypatch):
    put(TARS)
    opened("memory://set")  # where samples lie is known now
    for path in (cache_folder() / "shards" / "copies").iterdir():
        path.unlink()
    shards._opened.cache_clear()
    monkeypatch.setattr(survey, "_MANY", 0)
    monkeypatch.setattr(survey, "first_look", lambda *_: ((70, 70), False))
    failing(monkeypatch, PermissionError("expired"), 10**6)
    with pytest.raises(DataError, match=r"memory://.*may not be read: PermissionError") as told:
        open_sources(DataSection(name="memory://set", image_size=64, patch_size=8))
    assert "must be cached" not in str(told.value)


def test_a_full_disk_is_no_fault_of_the_bucket():
    with pytest.raises(OSError, match="No space"), answering("s3://bucket/a.tar"):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/a.tar")
