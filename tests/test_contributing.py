"""What CONTRIBUTING.md shows of new things works as it stands."""

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mimkit.data.pixels.decode import decode
from mimkit.launch.base import Task
from mimkit.report.findings import Row
from mimkit.report.looks import looks
from mimkit.report.verdicts import judge

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
BLOCK = re.compile(r'^```python title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(request, monkeypatch):
    """The names of one block, which is run as a module: dataclasses look for theirs."""
    code = dict(BLOCK.findall(PAGE.read_text(encoding="utf-8")))[request.param]
    module = type(sys)("example")
    monkeypatch.setitem(sys.modules, "example", module)
    exec(compile(code, str(PAGE), "exec"), vars(module))
    return module


@pytest.mark.parametrize("example", ["evaluator"], indirect=True)
def test_the_evaluator_judges_and_repeats_nothing(example, subject):
    evaluator = example.NearestMean(None)
    results = evaluator.run(subject)
    assert [one.init for one in results] == ["pretrained", "random", "pixels"]
    assert all(0 <= one.value <= 1 for one in results)
    evaluator.score = pytest.fail
    assert evaluator.run(subject) == results


@pytest.mark.parametrize("example", ["chart"], indirect=True)
def test_the_chart_is_drawn(example):
    found = judge(Row("knn", "accuracy", {}, {"mine": {"pretrained": {0: 0.4, 1: 0.5}}}))
    chart = example.seed_chart(found, looks(["mine"]))
    assert chart.svg.startswith("<svg")
    assert "by seed" in chart.title


@pytest.mark.parametrize("example", ["launcher"], indirect=True)
def test_the_launcher_starts_a_process_and_tells_how_it_ended(example, tmp_path):
    launcher = example.Plain(tmp_path, [])
    job = launcher.submit(Task([sys.executable, "-c", "print(6 * 7)"], tmp_path / "a.log"))
    while (ended := launcher.poll(job)) is None:
        time.sleep(0.01)
    assert ended.code == 0
    assert (tmp_path / "a.log").read_text().split() == ["42"]
    assert example.Plain(tmp_path, []).poll(job) == type(ended).unseen()


@pytest.mark.parametrize("example", ["data format"], indirect=True)
def test_the_data_format_gives_its_images(example, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.save(tmp_path / "stack.npy", images)
    table = example.StackListing(str(tmp_path / "stack.npy"), "").read(None)
    assert len(table.contents) == 3
    assert (np.asarray(decode(table.contents.content(2))) == images[2]).all()
