"""Looking at all images once: it goes on where it was stopped, and says how long it takes."""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mimkit.data.cache import folder as cache_folder
from mimkit.data.looking import chunks, survey
from mimkit.data.looking.pace import Pace
from mimkit.data.opening import find, open_source, open_sources
from mimkit.recipe.sections import DataSection


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """No data, no cache, no network, whatever this machine has."""
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def section(name, **values):
    return DataSection(name=str(name), image_size=8, patch_size=4, **values)


def images(root, count, size=(8, 8)):
    """Writes images, of which every tenth is broken."""
    root.mkdir(parents=True)
    for number in range(count):
        path = root / f"{number}.png"
        values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
        if number % 10 == 0:
            path.write_bytes(path.read_bytes()[:50])
    return root


def deep(root, values, count=12):
    root.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(values + values.dtype.type(0)).save(root / f"{number}.tiff")
    return root


class TestGoingOn:
    @pytest.mark.parametrize("size", [(8, 8), (70, 66)])
    def test_what_was_found_before_a_stop_is_kept_and_the_end_is_the_same(
        self, tmp_path, monkeypatch, size
    ):
        monkeypatch.setattr(survey, "_CHUNK", 7)
        monkeypatch.setattr(survey, "_MANY", 2)
        monkeypatch.setattr(survey, "cores", lambda: 0)
        data = section(images(tmp_path / "set", 60, size))
        undisturbed = open_source(data, "train")
        monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "again"))
        looked = []

        def stopping(table, rows, task):
            if len(looked) == 4:
                raise KeyboardInterrupt
            looked.append(rows)
            return chunks.look_at(table, rows, task)

        monkeypatch.setattr(survey, "look_at", stopping)
        with pytest.raises(KeyboardInterrupt):
            open_source(data, "train")
        kept = sorted(cache_folder().rglob("chunks/*.npz"))
        assert len(kept) == 4
        kept[1].write_bytes(kept[1].read_bytes()[:99])  # a crash of the machine
        again = []

        def counting(table, rows, task):
            again.append(rows)
            return chunks.look_at(table, rows, task)

        monkeypatch.setattr(survey, "look_at", counting)
        found = open_source(data, "train")
        assert len(looked) + len(again) == -(-54 // 7) + 1  # but for the damaged one, none twice
        assert found.fingerprint == undisturbed.fingerprint
        assert found.skipped == undisturbed.skipped
        assert len(found.skipped) > 3
        assert torch.equal(found.sizes, undisturbed.sizes)
        if size == (8, 8):
            assert torch.equal(found.pixels, undisturbed.pixels)
        assert not list(cache_folder().rglob("chunks"))

    @pytest.mark.slow
    def test_a_kill_loses_little(self, tmp_path):
        root = tmp_path / "set"
        root.mkdir()
        photo = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
        Image.fromarray(photo).save(root / "0.jpg", quality=95)
        for number in range(1, 4000):
            os.link(root / "0.jpg", root / f"{number}.jpg")
        program = (
            "from mimkit.data.opening import open_source;"
            "from mimkit.recipe.sections import DataSection;"
            f"open_source(DataSection(name={str(root)!r}, image_size=8, patch_size=4), 'train')"
        )
        started = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        while len(list(cache_folder().rglob("chunks/*.npz"))) < 2:
            time.sleep(0.02)
            assert started.poll() is None
        started.send_signal(signal.SIGKILL)
        started.wait()
        started.stderr.close()
        again = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        found = re.search(
            r"looking at 3,600 images \(once\), going on after ([\d,]+)", again.stderr
        )
        assert int(found[1].replace(",", "")) >= 512


def test_what_one_process_found_on_disk_is_enough_for_the_others(tmp_path, monkeypatch):
    for split in ("train", "val"):
        images(tmp_path / "set" / split / "a", 12)
        images(tmp_path / "set" / split / "b", 12)
    data = section(tmp_path / "set")
    alone = open_sources(data)
    found = pickle.loads(pickle.dumps(find(data)))
    monkeypatch.setattr("mimkit.data.intake.locate.walk", lambda _: pytest.fail("walked again"))
    given = open_sources(data, found)
    assert [each.fingerprint for each in given] == [each.fingerprint for each in alone]
    assert given[0].skipped == alone[0].skipped


class TestPace:
    def said(self, seconds, *, terminal=False, done=0, hint="look no further"):
        now = [0.0]
        console = Console(file=StringIO(), width=300, force_terminal=terminal)
        with Pace("looking", 1000 + done, done, console, hint=hint, clock=lambda: now[0]) as pace:
            for _ in range(100):
                now[0] += seconds / 100
                pace.advance(10)
        return console.file.getvalue()

    def test_rate_and_time_left_are_told_every_ten_seconds(self):
        lines = self.said(100).splitlines()
        assert lines[0] == "looking"
        assert lines[1] == "  10 %, 10 images/s, about 90 s left".replace("90 s", "2 min")
        assert lines[9] == "  90 %, 10 images/s, about 10 s left"
        assert len(lines) == 10

    def test_the_rate_is_that_of_this_call(self):
        lines = self.said(20, done=500).splitlines()
        assert lines[0] == "looking, going on after 500"
        assert lines[1] == "  67 %, 50 images/s, about 10 s left"

    def test_what_takes_minutes_can_be_left_out_which_is_said_once(self):
        assert self.said(1000).count("look no further") == 1
        assert "look no further" not in self.said(200)

    def test_a_terminal_shows_one_line(self):
        said = self.said(100, terminal=True, hint="")
        assert "images/s" in said
        assert "about" not in said


class TestDepth:
    @pytest.mark.parametrize(("bits", "levels"), [(10, 5), (12, 17)])
    def test_few_levels_are_told(self, tmp_path, bits, levels):
        values = np.arange(2**bits, dtype=np.uint16).reshape(32, -1)
        source = open_source(section(deep(tmp_path / "set", values), range="type"), "train")
        grey = {int(each) for each in np.unique(np.asarray(source.image(0)))}
        assert len(grey) == levels  # what comes out of Pillow is what is told
        assert (
            f"11 images in 16 bits use only values up to {2**bits - 1:,}: as 65,535 is white, at "
            f"most {levels} of 256 levels are left"
        ) in source.describe()
        assert open_source(section(tmp_path / "set", range="type"), "train").note == source.note

    def test_what_is_clipped_is_told(self, tmp_path):
        values = np.array([[-7, 70_000] * 8] * 8, dtype=np.int32)
        source = open_source(section(deep(tmp_path / "set", values), range="type"), "train")
        assert "11 images hold values from -7 to 70,000" in source.note
        assert sorted(np.unique(np.asarray(source.image(0)))) == [0, 255]

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_a_full_range_is_no_news(self, tmp_path, kind):
        values = np.linspace(0, np.iinfo(kind).max, 64).astype(kind).reshape(8, 8)
        source = open_source(section(deep(tmp_path / "set", values), range="type"), "train")
        assert "bits" not in source.note
