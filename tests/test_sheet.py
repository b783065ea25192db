import pytest
import torch
from PIL import Image, ImageColor

from mimkit.parts.records import Grid, Mask, View
from mimkit.report.sheet import (
    MASKED_GREY,
    RIGHT,
    WRONG,
    Column,
    contact_sheet,
    denormalise,
    masked_input,
)

GRID = Grid(4, 4, 2)


def mask_at(positions, grid=GRID, batch_size=2, hide=False):
    masked = torch.zeros(batch_size, grid.num_patches, dtype=torch.bool)
    masked[:, positions] = True
    return Mask.replace(masked, grid) if hide else Mask.drop(masked, grid)


def black(grid=GRID, batch_size=2, channels=3):
    return torch.zeros(batch_size, channels, *grid.image_size)


def colours(path):
    with Image.open(path) as sheet:
        return {colour for _, colour in sheet.convert("RGB").getcolors(maxcolors=2**20)}


def test_denormalising_undoes_the_view():
    view = View("image", (8, 8), mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor(view.mean)[:, None, None], torch.tensor(view.std)[:, None, None]
    assert torch.allclose(denormalise((image - mean) / std, view), image, atol=1e-6)


def test_denormalised_predictions_stay_displayable():
    shown = denormalise(torch.tensor([-9.0, 9.0]).expand(1, 3, 1, 2), View("image", (1, 2)))
    assert shown.min() == 0
    assert shown.max() == 1


@pytest.mark.parametrize("hide", [False, True], ids=["dropped", "shown as mask token"])
def test_masked_input_greys_what_the_encoder_does_not_see(hide):
    grid = Grid(3, 5, 2)
    shown = masked_input(black(grid), mask_at([0, 7], grid, hide=hide))
    expected = black(grid)
    expected[:, :, 0:2, 0:2] = MASKED_GREY
    expected[:, :, 2:4, 4:6] = MASKED_GREY
    assert torch.equal(shown, expected)


def test_right_and_wrong_targets_are_framed_where_they_are(tmp_path):
    mask = mask_at([0, 15], batch_size=1)
    columns = [
        Column("image", black(batch_size=1)),
        Column("choice", black(batch_size=1), torch.tensor([[[True, False]]])),
    ]
    contact_sheet(tmp_path / "sheet.png", columns, mask)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = sheet.convert("RGB")
        black_at = [
            (x, y)
            for x in range(pixels.width)
            for y in (pixels.height // 2,)
            if pixels.getpixel((x, y)) == (0, 0, 0)
        ]
        right, wrong = ImageColor.getrgb(RIGHT), ImageColor.getrgb(WRONG)
        start = black_at[-1][0] - 255
        in_cell = pixels.crop((start, 0, start + 256, pixels.height - 60))
        found = {
            colour: [
                (x, y)
                for x in range(in_cell.width)
                for y in range(in_cell.height)
                if in_cell.getpixel((x, y)) == colour
            ]
            for colour in (right, wrong)
        }
    assert max(x for x, _ in found[right]) < 64
    assert min(x for x, _ in found[wrong]) >= 192
    assert max(y for _, y in found[right]) < min(y for _, y in found[wrong])


def test_padding_is_not_framed(tmp_path):
    mask = Mask(
        grid=GRID,
        context=torch.arange(2, 16)[None],
        hidden=torch.zeros(1, 14, dtype=torch.bool),
        target=torch.tensor([[[1, 0]]]),
        valid=torch.tensor([[[True, False]]]),
    )
    grey = torch.full((1, 3, 8, 8), 0.5)
    column = Column("choice", grey, torch.tensor([[[True, True]]]))
    contact_sheet(tmp_path / "one.png", [column], mask)
    both = Mask(GRID, mask.context, mask.hidden, mask.target, torch.ones_like(mask.valid))
    contact_sheet(tmp_path / "two.png", [column], both)
    green = []
    for name in ("one.png", "two.png"):
        with Image.open(tmp_path / name) as sheet:
            counts = {colour: n for n, colour in sheet.convert("RGB").getcolors(2**20)}
        green.append(counts[ImageColor.getrgb(RIGHT)])
    assert green[0] < green[1]


def test_small_images_are_enlarged_without_blur(tmp_path):
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    contact_sheet(tmp_path / "sheet.png", [Column("", image)], mask_at([0]))
    saturated = {c for c in colours(tmp_path / "sheet.png") if len(set(c)) > 1}
    assert saturated <= {
        (r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255) if len({r, g, b}) > 1
    }


def test_a_sheet_has_a_row_per_image_and_a_column_per_picture(tmp_path):
    for number, (columns, batch_size) in enumerate([(2, 2), (3, 2), (2, 3)]):
        contact_sheet(
            tmp_path / f"{number}.png",
            [Column("x", black(batch_size=batch_size))] * columns,
            mask_at([0], batch_size=batch_size),
        )
    sizes = []
    for number in range(3):
        with Image.open(tmp_path / f"{number}.png") as sheet:
            sizes.append(sheet.size)
    base, wider, taller = sizes
    assert wider == (base[0] + 256 + 12, base[1])
    assert taller == (base[0], base[1] + 256 + 12)


def test_many_images_of_few_columns_go_side_by_side(tmp_path):
    for batch_size in (6, 12):
        contact_sheet(
            tmp_path / f"{batch_size}.png",
            [Column("x", black(batch_size=batch_size))] * 2,
            mask_at([0], batch_size=batch_size),
        )
    with Image.open(tmp_path / "6.png") as few, Image.open(tmp_path / "12.png") as many:
        assert few.height == many.height
        assert few.width < many.width


@pytest.mark.parametrize("size", [2, 150])
def test_sheets_with_columns_of_one_width_have_a_row_for_every_image(tmp_path, size):
    grid = Grid(4, 6, size)
    contact_sheet(
        tmp_path / "sheet.png",
        [Column("x", black(grid, batch_size=12))] * 2,
        mask_at([0], grid, batch_size=12),
        column_width=180,
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 24 + 2 * (180 + 12) + 24 - 12
        pixels = sheet.convert("L")
        rows = [y for y in range(pixels.height) if pixels.getpixel((24 + 90, y)) == 0]
    assert len(rows) == 12 * 120


def test_images_that_are_larger_than_their_column_are_averaged(tmp_path):
    stripes = torch.zeros(1, 3, 8, 400)
    stripes[..., ::2] = 1
    contact_sheet(tmp_path / "sheet.png", [Column("", stripes)], None, column_width=200)
    with Image.open(tmp_path / "sheet.png") as sheet:
        grey = {pixel for _, pixel in sheet.convert("L").getcolors()} - {255}
    assert grey == {128}


def test_grey_images_and_other_shapes_are_drawn(tmp_path):
    grid = Grid(3, 5, 2)
    columns = [Column("grey", black(grid, channels=1)), Column("a long title " * 5, black(grid))]
    contact_sheet(tmp_path / "sheet.png", columns, mask_at([0], grid))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height


def test_a_sheet_that_frames_nothing_needs_no_mask(tmp_path):
    columns = [Column("original", black()), Column("reconstruction", black())]
    contact_sheet(tmp_path / "bare.png", columns, None)
    contact_sheet(tmp_path / "masked.png", columns, mask_at([0]))
    with Image.open(tmp_path / "bare.png") as bare, Image.open(tmp_path / "masked.png") as masked:
        assert bare.tobytes() == masked.tobytes()


def test_the_description_is_kept_in_the_file(tmp_path):
    contact_sheet(
        tmp_path / "sheet.png", [Column("x", black())], mask_at([0]), description="4 × 4 Flecken"
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()
        assert sheet.info["Description"] == "4 × 4 Flecken"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]
