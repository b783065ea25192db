"""The detector: what of torchvision it keeps, what it does otherwise, and traps of ports."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, generalized_box_iou_loss

from mimkit import Geometry, Grid, Level
from mimkit.builtin.encoders import ViT
from mimkit.evaluate.detection.anchors import Anchors, fitting_scale
from mimkit.evaluate.detection.heads import Pooling, mask_loss
from mimkit.evaluate.detection.network import Detector, Settings
from mimkit.parts.dense import DenseBackbone

GEOMETRY = Geometry(Grid(4, 4, 8))
SETTINGS = Settings(
    num_classes=3,
    masks=True,
    fpn_channels=16,
    norm="group",
    box_head="mlp",
    box_loss="smooth_l1",
    head_width=32,
    num_sampled=32,
    max_detections=20,
)
WIDE = Grid(4, 8, 8)


def encoder(**options):
    torch.manual_seed(0)
    return ViT(GEOMETRY, embed_dim=16, depth=4, num_heads=2, **options)


def detector(grid=WIDE, *, frozen=False, of=None, **changes):
    backbone = (of or encoder()).dense(grid)
    torch.manual_seed(1)
    return Detector(backbone, Settings(**{**SETTINGS.__dict__, **changes}), frozen=frozen)


def batch(grid=WIDE, count=2):
    height, width = grid.image_size
    rng = torch.Generator().manual_seed(2)
    image = torch.randn(count, 3, height, width, generator=rng)
    boxes = torch.tensor([[4.0, 5.0, 20.0, 21.0], [10.0, 12.0, 30.0, 30.0]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    known = {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks}
    return image, [grid.image_size] * count, [known] * count


def losses_of(network, grid=WIDE):
    image, shapes, targets = batch(grid)
    torch.manual_seed(3)
    return network.train()(image, shapes, targets)[1]


def torchvisions(network):
    """Mask R-CNN as torchvision joins it, with the parts of ours."""
    backbone = nn.Identity()
    backbone.out_channels = SETTINGS.fpn_channels
    heads = network.heads
    found = MaskRCNN(
        backbone,
        rpn_anchor_generator=network.rpn.anchor_generator,
        rpn_head=network.rpn.head,
        box_head=heads.box_head,
        box_predictor=heads.box_predictor,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
        box_batch_size_per_image=SETTINGS.num_sampled,
        box_detections_per_img=SETTINGS.max_detections,
    )
    found.roi_heads.box_roi_pool = heads.box_roi_pool
    found.roi_heads.mask_roi_pool = heads.mask_roi_pool
    return found


class Means(DenseBackbone):
    """Maps of known strides without any weights but one."""

    def __init__(self, *strides):
        super().__init__()
        self.levels = tuple(Level(3, stride) for stride in strides)
        self.last = self.levels[-1]
        self.weight = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image):
        image = self.norm(image) * self.weight
        return tuple(F.avg_pool2d(image, level.stride) for level in self.levels)

    def features(self, image):
        return self(image)[-1]

    def layer_groups(self):
        return [[self.weight, *self.norm.parameters()], []]


class TestEncoder:
    def test_positions_are_those_of_images_that_are_not_square(self):
        """Left as they were, positions of a row would go on in the next: a trap of ports."""
        of = encoder(positions="learned")
        network = detector(of=of)
        resampled = network.backbone.get_parameter("vit.pos_embed")[0, 1:].view(4, 8, 16)
        before = of.pos_embed[0, 1:].view(4, 4, 16)
        between = F.interpolate(before.permute(2, 0, 1)[None], size=(4, 8), mode="bicubic")
        assert torch.allclose(resampled.permute(2, 0, 1), between[0], atol=0.02)
        assert losses_of(network).keys() == losses_of(detector()).keys()

    def test_layer_scale_is_kept_and_counts(self):
        of = encoder(layer_scale=0.1)
        image, _, _ = batch()
        network = detector(of=of).eval()
        gammas = {k: v for k, v in network.backbone.named_parameters() if k.endswith("gamma")}
        assert len(gammas) == 2 * 4
        before = network._maps(image)
        with torch.no_grad():
            for gamma in gammas.values():
                gamma.mul_(3)
        assert all(
            not torch.allclose(x, y) for x, y in zip(before, network._maps(image), strict=True)
        )

    def test_it_gets_a_gradient_unless_it_is_frozen(self):
        for frozen in (False, True):
            network = detector(frozen=frozen)
            sum(losses_of(network).values()).backward()
            grads = [parameter.grad for parameter in network.backbone.parameters()]
            got = [grad is not None and bool(grad.any()) for grad in grads]
            assert any(got) is not frozen
            for part in (network.pyramid, network.fpn, network.rpn, network.heads):
                assert any(p.grad is not None and p.grad.any() for p in part.parameters())

    def test_batch_norm_inside_it_keeps_its_statistics(self):
        torch.manual_seed(0)
        network = Detector(Means(4, 8, 16, 32), SETTINGS, frozen=False)
        before = copy.deepcopy(network.backbone.norm.state_dict())
        losses_of(network)
        assert network.training
        for name, value in network.backbone.norm.state_dict().items():
            assert torch.equal(value, before[name])

    def test_new_layers_have_no_batch_norm_unless_asked(self):
        """Statistics of two images are noise: another trap."""
        norms = [m for m in detector(box_head="conv").modules() if isinstance(m, _BatchNorm)]
        assert not norms
        assert any(isinstance(m, _BatchNorm) for m in detector(norm="batch").modules())

    def test_in_training_an_image_does_not_depend_on_the_others_of_its_batch(self):
        network = detector(box_head="conv").train()
        image, _, _ = batch()
        alone = network.fpn(OrderedDict(zip("0123", network._maps(image[:1]), strict=True)))
        both = network.fpn(OrderedDict(zip("0123", network._maps(image), strict=True)))
        for name, value in alone.items():
            assert torch.allclose(value[0], both[name][0], atol=1e-5)


class TestAnchors:
    def test_large_ones_on_even_maps_are_torchvisions(self):
        maps = [torch.zeros(1, 1, 64 // k, 96 // k) for k in (4, 8)]
        images = ImageList(torch.zeros(1, 3, 64, 96), [(64, 96)])
        expected = AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)(images, maps)
        found = Anchors((4, 8), 8)(images, maps)
        assert found[0].shape == expected[0].shape
        assert (found[0] - expected[0]).abs().max() <= 0.5  # which it rounds to

    def test_small_ones_keep_their_sides_and_odd_maps_their_stride(self):
        maps = [torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 3, 3)]
        (found,) = Anchors((2, 4), 1.5)(ImageList(torch.zeros(1, 3, 10, 10), [(10, 10)]), maps)
        area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        assert torch.allclose(area[:75], torch.tensor(9.0))
        assert torch.allclose(area[75:], torch.tensor(36.0))
        ratio = (found[:3, 3] - found[:3, 1]) / (found[:3, 2] - found[:3, 0])
        assert torch.allclose(ratio, torch.tensor([0.5, 1.0, 2.0]))
        centres = (found[75:, :2] + found[75:, 2:]) / 2
        assert centres.max() == 8  # two cells of 4 px from the first, not of 10 // 3 px

    @pytest.mark.parametrize(
        ("sides", "expected"),
        [([], 8), ([4.0] * 9, 2), ([20.0] * 5, 5), ([300.0], 8), ([1.0, *[40.0] * 99], 8)],
    )
    def test_their_side_follows_the_objects_within_bounds(self, sides, expected):
        assert fitting_scale(np.array(sides), 4) == expected


class TestPooling:
    def maps(self, strides=(4, 8, 16, 32), size=(64, 96)):
        """Maps that hold, in each cell, where its centre lies in the image."""
        found = OrderedDict()
        for number, stride in enumerate(strides):
            y = (torch.arange(size[0] // stride) + 0.5) * stride
            x = (torch.arange(size[1] // stride) + 0.5) * stride
            found[str(number)] = torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]
        return found

    @pytest.mark.parametrize("strides", [(4, 8, 16, 32), (3, 6, 12, 24), (2, 4, 8, 16)])
    def test_a_box_gets_what_lies_in_it(self, strides):
        boxes = [torch.tensor([[20.0, 16.0, 48.0, 44.0], [30.0, 20.0, 58.0, 48.0]])]
        pooled = Pooling("0123", strides, 7)(self.maps(strides), boxes, [])
        for (left, top, right, bottom), found in zip(boxes[0].tolist(), pooled, strict=True):
            cells = (torch.arange(7) + 0.5) / 7
            rows, cols = top + cells * (bottom - top), left + cells * (right - left)
            assert torch.allclose(found[0], rows[:, None].expand(7, 7), atol=1e-3)
            assert torch.allclose(found[1], cols[None, :].expand(7, 7), atol=1e-3)

    def test_levels_are_those_of_torchvision(self):
        maps = OrderedDict(
            (str(k), torch.full((1, 1, 160 >> k, 160 >> k), float(k))) for k in range(4)
        )
        rng = torch.Generator().manual_seed(0)
        corner = 100 + 200 * torch.rand(40, 2, generator=rng)
        side = 2 ** (3 + 6 * torch.rand(40, 1, generator=rng))
        boxes = [torch.cat([corner, corner + side], 1)]
        theirs = MultiScaleRoIAlign(list("0123"), 7, 2)(maps, boxes, [(640, 640)])[:, 0, 3, 3]
        ours = Pooling("0123", (4, 8, 16, 32), 7)(maps, boxes, [])[:, 0, 3, 3]
        assert torch.equal(theirs, ours)
        assert ours.unique().tolist() == [0, 1, 2, 3]

    def test_a_level_without_boxes_and_no_boxes_at_all(self):
        boxes = [torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 30.0, 30.0]])]
        maps = OrderedDict((k, v.repeat(2, 1, 1, 1)) for k, v in self.maps().items())
        assert Pooling("0123", (4, 8, 16, 32), 14)(maps, boxes, []).shape == (1, 2, 14, 14)
        assert Pooling("0123", (4, 8, 16, 32), 7)(maps, boxes[:1] * 2, []).shape == (0, 2, 7, 7)


class TestLosses:
    def test_they_are_those_of_torchvisions_mask_rcnn(self):
        """Its own pieces, given our weights, anchors and pooling, say the same."""
        network = detector()
        official = torchvisions(network)
        image, shapes, targets = batch()
        ours = losses_of(network)
        maps = network.fpn(OrderedDict(zip("0123", network._maps(image), strict=True)))
        torch.manual_seed(3)
        proposals, theirs = official.train().rpn(ImageList(image, shapes), maps, targets)
        _, of_heads = official.roi_heads(maps, proposals, shapes, targets)
        assert torch.equal(ours["loss_objectness"], theirs["loss_objectness"])
        assert torch.equal(ours["loss_rpn_box_reg"], theirs["loss_rpn_box_reg"])
        assert torch.equal(ours["classifier"], of_heads["loss_classifier"])
        assert torch.equal(ours["box"], of_heads["loss_box_reg"])

    def test_masks_are_compared_as_torchvision_does_but_in_their_place(self):
        rng = torch.Generator().manual_seed(0)
        corner = 4 + 20 * torch.rand(5, 2, generator=rng)
        boxes = torch.cat([corner, corner + 6], 1)
        logits = torch.randn(5, 4, 28, 28, generator=rng)
        which, labels = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 3, 3, 1, 3])
        half = torch.zeros(2, 40, 40, dtype=torch.uint8)
        half[:, :, 16:] = 1
        args = [boxes], [half], [which]
        theirs = maskrcnn_loss(logits, [boxes - 0.5], [half], [torch.tensor([1, 3])], [which])
        assert mask_loss(logits, *args, labels).item() == pytest.approx(theirs.item(), rel=1e-5)
        assert mask_loss(logits[:0], [boxes[:0]], [half], [which[:0]], labels[:0]) == 0

    def test_what_is_found_is_what_torchvision_finds(self):
        network = detector().eval()
        official = torchvisions(network).eval()
        image, shapes, _ = batch()
        with torch.no_grad():
            maps = network.fpn(OrderedDict(zip("0123", network._maps(image), strict=True)))
            proposals, _ = official.rpn(ImageList(image, shapes), maps)
            expected, _ = official.roi_heads(maps, proposals, shapes)
            found, losses = network(image, shapes)
        assert not losses
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert torch.equal(value, theirs[name]), name

    def test_giou_is_that_of_the_boxes_that_are_predicted(self):
        network = detector(box_loss="giou")
        heads, rng = network.heads, torch.Generator().manual_seed(0)
        corner = 10 + 30 * torch.rand(6, 2, generator=rng)
        proposals = torch.cat([corner, corner + 5 + 10 * torch.rand(6, 2, generator=rng)], 1)
        truth = proposals + torch.randn(6, 4, generator=rng)
        labels = torch.tensor([1, 0, 3, 2, 0, 0])
        offsets = torch.randn(6, 16, generator=rng)
        wanted = heads.box_coder.encode_single(truth, proposals)
        found = heads._giou(offsets, [proposals[:2], proposals[2:]], labels, wanted)
        expected = 0.0
        for k in (0, 2, 3):
            mine = offsets[k].view(4, 4)[labels[k]] / torch.tensor([10.0, 10, 5, 5])
            left, top, right, bottom = proposals[k].tolist()
            wide, high = right - left, bottom - top
            x = left + wide / 2 + mine[0].item() * wide
            y = top + high / 2 + mine[1].item() * high
            wide, high = wide * math.exp(mine[2].item()), high * math.exp(mine[3].item())
            box = torch.tensor([[x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]])
            expected += generalized_box_iou_loss(box, truth[k : k + 1]).item()
        assert found.item() == pytest.approx(10 * expected / 6, rel=1e-4)

    def test_images_without_objects_are_learned_from(self):
        network = detector(box_loss="giou").train()
        image, shapes, targets = batch()
        nothing = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, *shapes[0], dtype=torch.uint8),
        }
        for learned in ([nothing, nothing], [targets[0], nothing]):
            _, losses = network(image, shapes, learned)
            assert all(bool(loss.isfinite()) for loss in losses.values())
            sum(losses.values()).backward()

    def test_coordinates_are_float32_where_all_else_is_bfloat16(self):
        network = detector().eval()
        image, shapes, _ = batch()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found, _ = network(image, shapes)
        boxes = torch.cat([each["boxes"] for each in found])
        assert boxes.dtype == torch.float32
        assert len(boxes) > 0
        assert not torch.equal(boxes, boxes.bfloat16().float())

    def test_padding_is_never_part_of_a_box(self):
        network = detector().eval()
        image, _, _ = batch()
        with torch.no_grad():
            found, _ = network(image, [(20, 30), (32, 64)])
        assert found[0]["boxes"][:, 2].max() <= 30
        assert found[0]["boxes"][:, 3].max() <= 20
