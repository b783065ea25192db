"""The evaluator ``detection``: what it measures, on which images, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from coco_files import annotation, opened, write_coco, write_images

from mimkit import Geometry, Grid, RecipeError
from mimkit.builtin.encoders import ViT
from mimkit.data.opening import open_sources
from mimkit.data.truth.records import Instances
from mimkit.data.truth.regions import encode
from mimkit.errors import DataError
from mimkit.evaluate.cells import Cell
from mimkit.evaluate.detection.annotated import require_objects
from mimkit.evaluate.detection.average_precision import metric_names, precision_of
from mimkit.evaluate.detection.batches import Varied, Whole
from mimkit.evaluate.detection.evaluator import Detection
from mimkit.evaluate.detection.pictures import drawn as painted_objects
from mimkit.evaluate.detection.placing import Variation
from mimkit.evaluate.detection.trainer import rate
from mimkit.recipe.sections import DataSection, TrainSection

GEOMETRY = Geometry(Grid(4, 4, 8))
SMALL = {"fpn_channels": 16, "head_width": 32, "num_sampled": 32, "flip": False}
QUICK = {**SMALL, "seeds": 1, "total_steps": 2, "batch_size": 2, "warmup_steps": 1}


class Model(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = ViT(GEOMETRY, embed_dim=32, depth=4, num_heads=2, layer_scale=1.0)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("MIMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MIMKIT_DATA", raising=False)


@pytest.fixture
def drawn(subject):
    """Pictures of objects, an encoder that has seen none."""
    section = DataSection(
        name="objects", image_size=32, patch_size=8, num_images=8, num_test_images=4
    )
    return with_data(subject, *open_sources(section))


def with_data(subject, train, test):
    view = dataclasses.replace(subject.view, image_size=(32, 32), mean=train.mean, std=train.std)
    return dataclasses.replace(
        subject, pretrainer=Model(100), fresh=Model, train=train, test=test, views=(view,)
    )


def cells(subject):
    path = subject.workdir / "cells.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_result_has_its_baseline_with_the_same_images(drawn):
    options = {**QUICK, "label_fractions": (0.5, 1.0), "seeds": 2}
    results = Detection(GEOMETRY, **options).run(drawn)
    boxes = [each for each in results if each.metric == "box_ap"]
    keys = {(r.init, r.seed, r.protocol["label_fraction"]) for r in boxes}
    assert len(boxes) == len(keys) == 8
    assert {r.init for r in results} == {"pretrained", "scratch"}
    for result in boxes:
        assert result.protocol["num_labels"] == 8 * result.protocol["label_fraction"]
        assert result.num_images == 4
        assert 0 <= result.value <= 1
    metrics = list(dict.fromkeys(r.metric for r in results))
    assert metrics == [n for n in metric_names(masks=True) if not n.endswith(("medium", "large"))]
    assert all(line.stat().st_size < 20_000 for line in [drawn.workdir / "cells.jsonl"])


def test_pictures_and_curves_are_kept(drawn):
    results = Detection(GEOMETRY, **QUICK).run(drawn)
    shown = drawn.workdir / "shown"
    assert {each.name for each in shown.iterdir()} == {"image", "truth", "pretrained", "scratch"}
    for each in shown.iterdir():
        assert [path.name for path in sorted(each.glob("*.png"))] == [f"{k}.png" for k in range(4)]
    for result in results:
        if result.metric == "box_ap":
            assert all(len(line) == 101 for line in result.curves.values())
            assert len(result.curves) == 2
            assert np.mean(list(result.parts.values())) == pytest.approx(result.value)
            assert set(result.parts) <= set(drawn.test.objects.classes)
        else:
            assert not result.curves


def test_objects_are_drawn_where_they_are():
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    region = np.zeros((1, 20, 30), dtype=bool)
    region[0, 5:10, 6:12] = True
    boxes = np.array([[6, 5, 12, 10], [28.4, 3, 28.6, 3.2]], dtype=np.float32)
    picture = painted_objects(image, boxes, np.array([0, 1]), None)
    assert picture[:, 5, 6].any()
    assert picture[:, 9, 7].eq(0).all()  # within the box, but not its line
    inside = painted_objects(image, boxes[:1], np.array([0]), encode(region))
    assert inside[:, 8, 8].any()
    assert inside[:, 15, 20].eq(0).all()
    assert torch.equal(painted_objects(image, boxes[:0], np.array([]), None), image)


@pytest.mark.slow
def test_it_learns(drawn):
    """A few pictures by heart: what is found is what is there, boxes and masks, at full size."""
    section = DataSection(
        name="objects", image_size=64, patch_size=8, num_images=4, num_test_images=4
    )
    train, _ = open_sources(section)
    subject = with_data(drawn, train, dataclasses.replace(train, split="test"))
    evaluator = Detection(
        GEOMETRY,
        **{**SMALL, "fpn_channels": 32, "head_width": 64},
        seeds=1,
        total_steps=150,
        batch_size=4,
        lrs=(3e-3,),
        warmup_steps=10,
        image_size=48,
        scale=(1.0, 1.0),
        weight_decay=0.0,
        baseline=False,
    )
    found = {each.metric: each.value for each in evaluator.run(subject)}
    assert found["box_ap50"] > 0.6
    assert found["mask_ap50"] > 0.5


def test_a_batch_can_be_learned_in_pieces(drawn):
    """One step over four images is one over twice two, but for which proposals are drawn."""

    def weights(**options):
        few = {**QUICK, "total_steps": 1, "batch_size": 4, "num_sampled": 4000, **options}
        evaluator = Detection(GEOMETRY, **few)
        network = evaluator.network(drawn, Cell("pretrained", 0))
        before = network.fpn.inner_blocks[0][0].weight.clone()
        evaluator.trainer(drawn).fit(network, Cell("pretrained", 0), torch.arange(8))
        return network.fpn.inner_blocks[0][0].weight - before

    whole, pieces = weights(), weights(accumulate=2)
    assert torch.nn.functional.cosine_similarity(whole.flatten(), pieces.flatten(), dim=0) > 0.7


def test_finished_cells_are_not_measured_again(drawn, monkeypatch):
    first = Detection(GEOMETRY, **QUICK).run(drawn)
    trainer = "mimkit.evaluate.detection.trainer.DetectionTrainer.fit"
    monkeypatch.setattr(trainer, lambda *_: pytest.fail("trained again"))
    assert Detection(GEOMETRY, **QUICK).run(drawn) == first
    for change in ({"total_steps": 3}, {"box_loss": "giou"}, {"scale": (1.0, 1.0)}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            Detection(GEOMETRY, **{**QUICK, **change}).run(drawn)
    with torch.no_grad():
        next(drawn.pretrainer.encoder.parameters()).add_(1)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        Detection(GEOMETRY, **QUICK).run(drawn)


def test_the_same_evaluation_gives_the_same_numbers_and_changes_nothing(drawn):
    before = {k: v.clone() for k, v in drawn.pretrainer.state_dict().items()}
    state = torch.random.get_rng_state()
    first = Detection(GEOMETRY, **QUICK).run(drawn)
    assert torch.equal(state, torch.random.get_rng_state())
    for name, value in drawn.pretrainer.state_dict().items():
        assert torch.equal(value, before[name])
    (drawn.workdir / "cells.jsonl").unlink()
    with_loaders = dataclasses.replace(drawn, workers=2)
    assert Detection(GEOMETRY, **QUICK).run(with_loaders) == first


def test_a_frozen_encoder_stays_and_is_compared_with_a_random_one(drawn):
    evaluator = Detection(GEOMETRY, frozen=True, **QUICK)
    results = evaluator.run(drawn)
    assert {r.init for r in results} == {"pretrained", "random"}
    network = evaluator.network(drawn, Cell("pretrained", 0))
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    heads = network.heads.box_predictor.cls_score.weight.clone()
    evaluator.trainer(drawn).fit(network, Cell("pretrained", 0), torch.arange(6))
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(network.heads.box_predictor.cls_score.weight, heads)


def test_new_layers_begin_alike_in_both_starts_and_differ_by_seed(drawn):
    evaluator = Detection(GEOMETRY, **QUICK)
    networks = [
        evaluator.network(drawn, Cell(init, seed))
        for init, seed in (("pretrained", 0), ("scratch", 0), ("pretrained", 1))
    ]
    ours, theirs, other = (network.heads.state_dict() for network in networks)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(not torch.equal(value, other[name]) for name, value in ours.items())
    encoders = [network.backbone.state_dict() for network in networks]
    assert any(not torch.equal(v, encoders[1][k]) for k, v in encoders[0].items())
    assert all(torch.equal(v, encoders[2][k]) for k, v in encoders[0].items())


def test_a_rate_is_chosen_on_development_images_alone(drawn):
    evaluator = Detection(GEOMETRY, **{**QUICK, "lrs": (1e-9, 1e-3)})
    results = evaluator.run(drawn)
    searched = [cell for cell in cells(drawn) if cell["split"] == "development"]
    assert {(cell["init"], cell["lr"]) for cell in searched} == {
        (init, lr) for init in ("pretrained", "scratch") for lr in (1e-9, 1e-3)
    }
    for result in results:
        of = [cell for cell in searched if cell["init"] == result.init]
        best = max(of, key=lambda cell: cell["box_ap"])
        assert result.chosen["lr"] == best["lr"]


def test_lower_layers_learn_more_slowly(drawn):
    """And what of the encoder is not used, such as its closing norm, does not count."""

    def moved(**options):
        evaluator = Detection(GEOMETRY, **{**QUICK, "weight_decay": 0.0, **options})
        network = evaluator.network(drawn, Cell("pretrained", 0))
        before = {k: v.clone() for k, v in network.backbone.named_parameters()}
        evaluator.trainer(drawn).fit(network, Cell("pretrained", 0), torch.arange(6))
        after = dict(network.backbone.named_parameters())
        return {k: (after[k] - v).abs().max().item() for k, v in before.items()}

    alike, decayed = moved(), moved(layer_decay=0.5)
    for block in range(4):
        name = next(k for k in alike if f"blocks.{block}.attn.qkv.weight" in k)
        assert decayed[name] / alike[name] == pytest.approx(0.5 ** (4 - block), rel=0.2)


def test_the_work_is_timed(drawn):
    few = Detection(GEOMETRY, **QUICK).work(drawn).seconds
    many = Detection(GEOMETRY, **{**QUICK, "total_steps": 400, "seeds": 3}).work(drawn).seconds
    assert few > 0
    assert many > 10 * few


class TestFiles:
    """A COCO file with images of several sizes."""

    SIZES = ((40, 56), (64, 48), (80, 120), (30, 90))

    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "set"
        for split in ("train", "val"):
            names = []
            for number, size in enumerate(self.SIZES):
                names.append(f"{split}/{number}.png")
                write_images(root, names[-1], size=size)
            boxes = [annotation(image=k, bbox=(4, 6, 16, 18)) for k in (1, 2, 3)]
            file = write_coco(root / f"{split}.json", names, boxes)
            tree = json.loads(file.read_text())
            for image, (height, width) in zip(tree["images"], self.SIZES, strict=True):
                image.update(height=height, width=width)
            file.write_text(json.dumps(tree))
        return root

    def test_boxes_alone_are_learned_where_there_are_no_outlines(self, subject, root):
        subject = with_data(subject, *opened(root))
        results = Detection(GEOMETRY, **{**QUICK, "image_size": (32, 48)}).run(subject)
        assert {r.metric.partition("_")[0] for r in results} == {"box"}
        assert results[0].protocol["image_size"] == "32 x 48"
        assert results[0].protocol["masks"] is False
        # The fourth image shows nothing, and is judged too.
        assert results[0].num_images == 4

    def test_what_is_found_is_told_in_pixels_of_the_whole_image(self, subject, root):
        """A detector that always finds the frame's content: boxes must be the images' own."""
        subject = with_data(subject, *opened(root))
        evaluator = Detection(GEOMETRY, **{**QUICK, "image_size": (32, 48)})
        network = evaluator.network(subject, Cell("pretrained", 0))

        def found(image, shapes):
            return [
                {
                    "boxes": torch.tensor([[0.0, 0.0, width, height]]),
                    "labels": torch.tensor([1]),
                    "scores": torch.tensor([0.9]),
                    "masks": torch.ones(1, 1, 28, 28),
                }
                for height, width in shapes
            ], {}

        network.forward = found
        trainer = evaluator.trainer(subject)
        for number, each in trainer.detect(network, subject.test, torch.arange(4)):
            height, width = subject.test.extent(torch.tensor([number]))[0].tolist()
            assert each.boxes[0].tolist() == pytest.approx([0, 0, width, height], abs=1e-4)
            assert each.labels.tolist() == [0]
            truth = Instances(
                each.boxes,
                each.labels,
                np.zeros(1, bool),
                np.array([height * width], np.float32),
                tuple(each.regions),
            )
            metrics = precision_of(
                [truth], [each], [(height, width)], num_classes=1, max_detections=9, masks=True
            ).metrics
            assert metrics["mask_ap"] == metrics["box_ap"] == 1
            assert each.regions[0]["size"] == [height, width]

    def test_without_objects_it_is_refused(self, subject, root):
        for change, message in (
            ({"objects": "none"}, "needs boxes, but the train split of .* has none. Put a JSON"),
            ({"objects": "train/only.json"}, "needs boxes, but the test split"),
        ):
            if "only" in change["objects"]:
                write_coco(root / "train/only.json", ["train/0.png"], size=self.SIZES[0])
            subject = with_data(subject, *opened(root, **change))
            with pytest.raises(DataError, match=message):
                Detection(GEOMETRY, **QUICK).check(subject)

    def test_annotations_without_any_object_are_refused(self, subject, root):
        write_coco(root / "val.json", ["val/0.png"], [], size=self.SIZES[0])
        subject = with_data(subject, *opened(root))
        with pytest.raises(DataError, match=r"of the 1 annotated images of the test split .* none"):
            Detection(GEOMETRY, **QUICK).check(subject)

    def test_images_to_judge_without_any_object_are_refused(self, subject, root):
        """The fourth shows nothing: alone it could only be judged as -1."""
        subject = with_data(subject, *opened(root))
        evaluator = Detection(GEOMETRY, **QUICK)
        evaluator.check(subject)
        (empty,) = (k for k in range(4) if not len(subject.test.objects(k)))
        with pytest.raises(DataError, match="needs objects, but of the 1 images to judge of"):
            require_objects(subject.test, torch.tensor([empty]), "images to judge", "detection")

    def test_an_image_without_annotations_is_neither_learned_from_nor_judged(self, subject, root):
        write_coco(root / "val.json", ["val/0.png"], size=self.SIZES[0])
        subject = with_data(subject, *opened(root))
        subsets = Detection(GEOMETRY, **QUICK).subsets(subject)
        assert subsets.test.tolist() == subject.test.objects.usable().tolist()
        assert len(subsets.test) == 1


class TestBatches:
    def test_are_functions_of_their_numbers(self, drawn):
        def images(seed):
            return Varied(
                drawn.train, torch.arange(8), drawn.view, 4, drawn.train.objects,
                Variation((0.5, 2.0), True), seed, True,
            )  # fmt: skip

        first, again, other = images(1)[7], images(1)[7], images(2)[7]
        assert torch.equal(first.image, again.image)
        assert first.places == again.places
        assert first.index == again.index
        assert not torch.equal(first.image, other.image)
        for one, two in zip(first.targets, again.targets, strict=True):
            assert all(torch.equal(value, two[name]) for name, value in one.items())

    def test_what_is_padded_becomes_zero(self, drawn):
        small = Variation((0.5, 0.5))
        images = Varied(
            drawn.train, torch.arange(4), drawn.view, 2, drawn.train.objects, small, 0, False
        )
        (shown,) = images.stream(1, workers=0, device=torch.device("cpu"))
        assert shown.places[0].shape == (16, 16)
        assert shown.image[:, :, 16:].abs().max() < 0.02
        assert shown.image[:, :, :16, :16].std() > 0.3

    def test_whole_images_come_once_and_in_order(self, drawn):
        images = Whole(drawn.train, torch.tensor([5, 3, 7]), drawn.view, 2)
        shown = list(images.stream(len(images), workers=0, device=torch.device("cpu")))
        assert [each.index for each in shown] == [(5, 3), (7,)]


def test_the_step_schedule_is_that_of_the_papers():
    train = TrainSection(total_steps=1200, batch_size=1, optimizer="adamw", lr=1.0, warmup_steps=9)
    assert rate(0, train, "step") == pytest.approx(0.1)
    assert rate(8, train, "step") == pytest.approx(0.9)
    assert [rate(step, train, "step") for step in (9, 899)] == [1, 1]
    assert [rate(step, train, "step") for step in (900, 1099)] == pytest.approx([0.1, 0.1])
    assert rate(1100, train, "step") == pytest.approx(0.01)
    assert rate(1199, train, "cosine") < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (2.0, 1.0)}, "scale: must ascend"),
        ({"lrs": ()}, "lrs: must hold at least one value"),
        ({"image_size": 36}, "image_size: must be multiples of the patches' 8 px, but is 36"),
        ({"image_size": (32, 44)}, "multiples of the patches' 8 px"),
        ({"norm": "batch", "batch_size": 2}, "'batch' needs at least 16 images at once"),
        ({"norm": "batch", "batch_size": 32, "accumulate": 16}, "statistics of 2 are noise"),
        ({"batch_size": 8, "accumulate": 3}, r"accumulate: must divide batch_size \(8\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Detection(GEOMETRY, **options)


def test_an_encoder_without_maps_is_refused_by_name(drawn):
    def dense(grid=None):
        raise RecipeError("Plain gives no maps for segmentation and detection.")

    drawn.pretrainer.encoder.dense = dense
    with pytest.raises(RecipeError, match="Plain gives no maps"):
        Detection(GEOMETRY, **QUICK).check(drawn)
