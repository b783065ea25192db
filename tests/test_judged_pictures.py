"""What evaluations leave to be looked at, and what their numbers are means of, in the report."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from page_text import text_of
from PIL import Image

from mimkit.errors import DataError
from mimkit.evaluate.base import Result
from mimkit.evaluate.shown import IMAGE, TRUTH, Shown, painted
from mimkit.folder import RunFolder
from mimkit.report import of_run
from mimkit.report.findings import Cell
from mimkit.report.judged import draw_judged
from mimkit.report.looks import looks
from mimkit.report.page import write_report
from mimkit.report.parts import part_charts
from mimkit.report.recall import curve_charts

WHITE = (255, 255, 255)


def leave(run, number=0, size=(20, 30), columns=(IMAGE, TRUTH, "pretrained", "scratch")):
    """Leaves pictures of two images, each column in a grey of its own."""
    shown = Shown(run / "evaluations" / f"{number}-segmentation" / "shown", (3, 14))
    for place, column in enumerate(columns):
        for image in shown.index:
            shown.add(column, image, torch.full((3, *size), 40 * place + image, dtype=torch.uint8))


def sheet(folder, name="judged_0-segmentation"):
    with Image.open(folder / "pictures" / f"{name}.png") as opened:
        return np.asarray(opened.convert("RGB")), opened.info["Description"]


def greys(picture):
    """The greys of a sheet from left to right, in its upper row and its lower one."""
    even = (picture.max(2) == picture.min(2)) & (picture[..., 0] < 250)
    found = []
    for half in np.array_split(np.arange(60, len(picture)), 2):
        row = picture[half[len(half) // 2]][even[half[len(half) // 2]]][:, 0]
        found.append([int(x) for x in dict.fromkeys(row.tolist()) if (row == x).sum() > 50])
    return found


def test_a_run_shows_its_starts_in_columns_and_images_in_rows(tmp_path):
    leave(tmp_path)
    study = of_run.study(RunFolder(tmp_path))
    draw_judged(study)
    picture, description = sheet(tmp_path)
    assert greys(picture) == [[3, 43, 83, 123], [14, 54, 94, 134]]
    assert "segmentation: test images, what is true of them" in description
    assert "pretrained, scratch" in description


def test_a_comparison_shows_every_method_beside_the_same_truth(tmp_path):
    study = of_run.study(RunFolder(tmp_path))
    runs = {}
    for label, shade in (("mae", 0), ("beit", 0)):
        run = tmp_path / "runs" / label / "0"
        leave(run)
        runs[label] = replace(
            study.outcomes[0],
            cell=Cell(label, 0),
            folder=run,
            state="finished",
            ledger={"x": shade},
        )
    arm = study.arms[0]
    whole = replace(
        study,
        is_run=False,
        folder=tmp_path,
        seeds=(0,),
        arms=tuple(replace(arm, label=label) for label in runs),
        outcomes=tuple(runs.values()),
    )
    draw_judged(whole)
    picture, description = sheet(tmp_path)
    assert greys(picture) == [[3, 43, 83], [14, 54, 94]]  # both methods answer alike
    assert "the answers of mae, beit" in description


def test_a_sheet_is_drawn_again_only_where_a_picture_is_newer(tmp_path):
    leave(tmp_path)
    study = of_run.study(RunFolder(tmp_path))
    draw_judged(study)
    file = tmp_path / "pictures" / "judged_0-segmentation.png"
    before = file.stat().st_mtime_ns
    draw_judged(study)
    assert file.stat().st_mtime_ns == before
    leave(tmp_path, columns=(IMAGE, TRUTH, "random"))
    draw_judged(study)
    assert file.stat().st_mtime_ns > before


def test_pictures_of_several_sizes_share_a_frame(tmp_path):
    leave(tmp_path, size=(20, 30))
    wide = Shown(tmp_path / "evaluations" / "0-segmentation" / "shown", (14,))
    for column in (IMAGE, TRUTH, "pretrained", "scratch"):
        wide.add(column, 14, torch.full((3, 10, 60), 7, dtype=torch.uint8))
    draw_judged(of_run.study(RunFolder(tmp_path)))
    picture, _ = sheet(tmp_path)
    assert (picture == WHITE).all(2).mean() > 0.4


def test_a_damaged_picture_is_named(tmp_path):
    leave(tmp_path)
    broken = tmp_path / "evaluations" / "0-segmentation" / "shown" / "truth" / "3.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3\.png: must be a picture"):
        draw_judged(of_run.study(RunFolder(tmp_path)))


def test_what_colours_stand_for_is_written_below(tmp_path):
    leave(tmp_path)
    study = of_run.study(RunFolder(tmp_path))
    draw_judged(study)
    plain, _ = sheet(tmp_path)
    shown = Shown(tmp_path / "evaluations" / "0-segmentation" / "shown", (3, 14))
    shown.explain(["sky", "car"])
    leave(tmp_path)
    draw_judged(study)
    picture, _ = sheet(tmp_path)
    below = picture[len(plain) - 20 :].reshape(-1, 3)
    painted_on = painted(torch.zeros(3, 1, 2, dtype=torch.uint8), torch.tensor([[0, 1]]))
    for tone in painted_on[:, 0].T.numpy():
        assert (np.abs(below * 0.6 - tone).max(axis=1) <= 1).sum() > 100
    (shown.folder / "colours.json").write_text('{"sky": "javascript:"}')
    leave(tmp_path)
    with pytest.raises(DataError, match=r"colours\.json: must give each name a colour"):
        draw_judged(study)


def test_nothing_is_drawn_where_nothing_was_left(tmp_path):
    draw_judged(of_run.study(RunFolder(tmp_path)))
    assert not (tmp_path / "pictures").exists()


def test_paint_tells_classes_apart_and_leaves_the_image_below_to_be_seen():
    image = torch.zeros(3, 4, 6, dtype=torch.uint8)
    image[:, :, 3:] = 200
    classes = torch.tensor([[0, 1, -1] * 2] * 4)
    found = painted(image, classes)
    dark, bright = found[:, 0, :3].T, found[:, 0, 3:].T
    assert len({tuple(pixel.tolist()) for pixel in dark}) == 3
    assert torch.equal(bright - dark, torch.full((3, 3), 80, dtype=torch.uint8))
    assert dark[2].unique().numel() == 1  # what is not judged is grey


# ---------------------------------------------------------------------------------- class by class


def results(parts, init, seed):
    mean = float(np.mean(list(parts.values())))
    return Result("segmentation", "miou", mean, 9, seed, init, {"label_fraction": 1.0}, parts=parts)


def write(folder, found):
    folder.mkdir(exist_ok=True)
    entries = {"results": [asdict(one) for one in found]}
    (folder / "results.json").write_text(json.dumps(entries))
    return of_run.study(RunFolder(folder))


def test_each_part_has_a_line_with_the_mean_over_seeds(tmp_path):
    study = write(
        tmp_path,
        [
            results({"sky": 0.8, "car": 0.2}, "pretrained", 0),
            results({"sky": 0.6, "car": 0.4}, "pretrained", 1),
            results({"sky": 0.5, "car": 0.1}, "scratch", 0),
        ],
    )
    (chart,) = part_charts(study, looks(study.labels))
    assert "pre-training: sky 70.0\u202f%, car 30.0\u202f%" in chart.description
    assert "(scratch): sky 50.0\u202f%, car 10.0\u202f%" in chart.description
    assert "mIoU" in chart.title
    page = text_of(write_report(study).read_text(encoding="utf-8"))
    assert "Class by class" in page


def test_of_many_parts_those_that_differ_most_are_shown(tmp_path):
    names = [f"class {number}" for number in range(50)]
    ours = {name: 0.5 + (0.3 if number % 5 == 0 else 0.0) for number, name in enumerate(names)}
    study = write(
        tmp_path,
        [results(ours, "pretrained", 0), results(dict.fromkeys(names, 0.5), "scratch", 0)],
    )
    (chart,) = part_charts(study, looks(study.labels))
    assert "of 50, the 30 that differ most" in chart.title
    assert all(f"class {number} 80.0" in chart.description for number in range(0, 50, 5))


def test_numbers_that_are_no_means_of_parts_have_no_such_chart(tmp_path):
    study = write(tmp_path, [Result("knn", "accuracy", 0.5, 9, 0)])
    assert part_charts(study, looks(study.labels)) == []


def test_curves_are_drawn_as_means_over_seeds(tmp_path):
    falling = [1 - place / 100 for place in range(101)]

    def one(init, seed, values):
        curves = {"box precision": values}
        return Result("detection", "box_ap", 0.5, 9, seed, init, {}, curves=curves)

    study = write(
        tmp_path,
        [
            one("pretrained", 0, [1.0] * 101),
            one("pretrained", 1, falling),
            one("scratch", 0, falling),
        ],
    )
    (chart,) = curve_charts(study, looks(study.labels))
    assert "Detection: box precision against recall" in chart.title
    assert "pre-training: 75.0\u202f% below the line" in chart.description
    assert "(scratch): 50.0\u202f% below the line" in chart.description
    assert "Precision and recall" in text_of(write_report(study).read_text(encoding="utf-8"))
