"""The tables of a recipe that belong to no part: ``[data]``, ``[augment]``, ``[train]``."""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Final, Literal

from annotated_types import Interval
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from mimkit.parts.bounds import AnyCount, Count, Fraction, NonNegative, Positive, Rate, Ratio
from mimkit.parts.records import Interpolation

_LARGEST_SIDE: Final = 16_384
_MOST_PATCHES: Final = 65_536
"""Of a grid: attention among that many would need 16 GiB a head and image."""


class Strict(BaseModel):
    """What all tables share: nothing is converted, no unknown key passes, nothing changes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()
    """Keys newer than runs that people keep. They are written down only where they are not as by
    default, so that what was computed before is known again."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, written = type(self).model_fields, handler(self)
        unsaid = {key for key in self.later if getattr(self, key) == fields[key].default}
        return {key: value for key, value in written.items() if key not in unsaid}


def _pair(value: object) -> tuple[int, int]:
    sizes = (value, value) if type(value) is int else value
    match sizes:
        case (int(height), int(width)) if all(0 < side <= _LARGEST_SIDE for side in sizes):
            return height, width
    raise ValueError(
        f"must be an integer from 1 to {_LARGEST_SIDE}, or an array of two, but is {value!r:.120}"
    )


Side = Annotated[int, Interval(ge=1, le=_LARGEST_SIDE)]
ByChannel = tuple[float, ...]
PositiveByChannel = tuple[Positive, ...]
PositiveRange = tuple[Positive, Positive]


class DataSection(Strict):
    """``[data]``: which images, and how they are cut into patches."""

    later: ClassVar[frozenset[str]] = frozenset({"channels", "judge", "range"})

    name: str = Field(
        min_length=1,
        description="a registered name, a folder of images or tar shards, parquet files, a Hugging "
        "Face id, or an address of shards or parquet: s3://, gs://, hf://datasets/, https://",
    )
    path: str | None = Field(None, description="where to look for the data first (--data)")
    labelled: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="labelled images for the evaluations, whatever name may be but not looked for "
        "in path, if those to pre-train on have no labels",
    )
    labels: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="a table of files and labels (CSV, TSV, JSON lines, parquet) (--labels)"
    )
    label_column: Literal["none"] | Annotated[str, Field(min_length=1)] | None = Field(
        None, description="the column of labels in tables; 'none' for no labels; default: found"
    )
    objects: Literal["none"] | Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="the JSON of objects as COCO has them, or a pattern of one for each split; of "
        "a table, the column of objects; 'none' for none; default: found",
    )
    image_column: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="the column of images, or of their files, in tables; default: found"
    )
    masks: Literal["none"] | Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="the folder, or column, of masks, which tell each pixel's class by its id; "
        "'none' for none; default: found",
    )
    mask_ignore: tuple[Annotated[int, Interval(ge=0, le=255)], ...] | None = Field(
        None, description="ids in masks that are not judged; default: 255, or the data set's"
    )
    layout: Literal["auto", "splits", "classes", "unlabelled"] = Field(
        "auto",
        description="what folders are: 'splits' train, test or val with classes in them; 'classes' "
        "each outermost one; 'unlabelled' nothing; 'auto' finds out and says it",
    )
    image_size: Annotated[
        tuple[int, int], BeforeValidator(_pair, json_schema_input_type=int | tuple[int, int])
    ] = Field(description="height and width the encoder sees, in pixels; one number for a square")
    patch_size: Side = Field(
        description="side of a patch in pixels; must divide the image's height and width"
    )
    channels: Annotated[int, Interval(ge=1, le=1_024)] = Field(
        3,
        description="of an image: 3 for RGB and 1 for grey, into which any 8-bit image is "
        "converted; others as they are stored",
    )
    range: Literal["measured", "type"] | tuple[float, float] = Field(
        "measured",
        description="stored values that become black and white: [LOW, HIGH]; 'measured': of images "
        "of more than 8 bits the least and greatest, of others 0 and 255; 'type': what their type "
        "can hold, in 8 bits",
    )
    mean: ByChannel | None = Field(
        None, description="mean to subtract, by channel; default: the data set's, or measured"
    )
    std: PositiveByChannel | None = Field(
        None, description="divisor, by channel; default: the data set's, or measured"
    )
    interpolation: Interpolation = Field("bicubic", description="how images are resized")
    num_images: Count | None = Field(
        None, description="use so many training images, all classes alike (shapes: draw so many)"
    )
    num_test_images: Count | None = Field(
        None, description="use so many test images, all classes alike (shapes: draw so many)"
    )
    judge: Literal["test", "development"] = Field(
        "test",
        description="whose labels evaluations judge by: those of the test split; or, so that "
        "something may be chosen, those of one training image in ten, which are then not learned "
        "from",
    )
    survey: bool = Field(
        True,
        description="look at every training image before the first run; false: when training first "
        "meets it; one that cannot be read is then listed, and the next that can stands in its "
        "place",
    )
    workers: Annotated[int, Interval(ge=0, le=1_024)] | None = Field(
        None,
        description="loader processes of each training process; default: 0 for sets on the device, "
        "else its share of the cores, less one, up to 16",
    )

    @field_validator("range")
    @classmethod
    def _ascends(cls, bounds: str | tuple[float, float]) -> str | tuple[float, float]:
        if not isinstance(bounds, str) and bounds[0] >= bounds[1]:
            raise ValueError(f"must ascend, but is {list(bounds)}")
        return bounds

    @field_validator("mean", "std")
    @classmethod
    def _of_each_channel(
        cls, values: tuple[float, ...] | None, info: ValidationInfo
    ) -> tuple[float, ...] | None:
        channels = info.data.get("channels")
        if values is not None and channels is not None and len(values) != channels:
            raise ValueError(
                f"must hold a number for each of the {channels} channels (data.channels), but "
                f"holds {len(values)}"
            )
        return values

    @field_validator("patch_size")
    @classmethod
    def _divides_image_size(cls, patch_size: int, info: ValidationInfo) -> int:
        if "image_size" in info.data:
            height, width = info.data["image_size"]
            if height % patch_size or width % patch_size:
                raise ValueError(
                    f"must divide image_size ({height} x {width} pixels), but is {patch_size}"
                )
            if (count := height * width // patch_size**2) > _MOST_PATCHES:
                raise ValueError(
                    f"must cut the image into at most {_MOST_PATCHES:,} patches, but {patch_size} "
                    f"of {height} x {width} pixels makes {count:,}"
                )
        return patch_size


class AugmentSection(Strict):
    """``[augment]``: how training images vary; all views of an image share one draw."""

    crop: Literal["none", "pad", "resized"] = Field(
        "resized", description="whole image, a crop of the padded image, or a random resized crop"
    )
    padding: Annotated[int, Interval(ge=0, le=_LARGEST_SIDE)] = Field(
        4, description="pixels on each side, for crop 'pad'"
    )
    padding_mode: Literal["zero", "reflect"] = Field("zero", description="what padding shows")
    crop_scale: tuple[Fraction, Fraction] = Field(
        (0.2, 1.0), description="share of the area that a resized crop keeps, from and to"
    )
    crop_ratio: PositiveRange = Field(
        (0.75, 4 / 3), description="width / height of a resized crop, from and to"
    )
    flip: bool = Field(True, description="mirror half of the images")
    color_jitter: Ratio = Field(
        0.0, description="strength of brightness, contrast and saturation changes"
    )

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ascends(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"must ascend, but is {list(bounds)}")
        return bounds


class TrainSection(Strict):
    """``[train]``: budget, optimizer, schedule, intervals."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"parallel", "start_from", "start_sha256", "start_parts", "extended"}
    )

    total_steps: AnyCount | None = Field(
        None, description="optimizer steps of the run; 0 only evaluates"
    )
    total_epochs: Annotated[float, Interval(gt=0, le=1_000_000)] | None = Field(
        None,
        validate_default=True,
        description="passes over the training images, instead of total_steps",
    )
    batch_size: Annotated[int, Interval(ge=1, le=1_000_000)] = Field(
        description="images of one optimizer step, on all devices"
    )
    optimizer: Literal["sgd", "adamw"] = Field(description="SGD with Nesterov momentum, or AdamW")
    lr: Positive = Field(description="learning rate after the warm-up")
    min_lr: NonNegative = Field(0.0, description="learning rate at the end of the cosine")
    warmup_steps: AnyCount | None = Field(None, description="steps of linear warm-up")
    warmup_epochs: Annotated[float, Interval(ge=0, le=1_000_000)] | None = Field(
        None, description="epochs of linear warm-up, instead of warmup_steps"
    )
    weight_decay: NonNegative = Field(
        0.0, description="not applied to parameters of one axis, nor to what a part exempts"
    )
    momentum: Rate = Field(0.9, description="of SGD")
    betas: tuple[Rate, Rate] = Field((0.9, 0.999), description="of AdamW")
    clip_norm: Positive | None = Field(
        None, description="largest norm of the gradient; default: unlimited"
    )
    accumulate: Literal["auto"] | Count = Field(
        "auto",
        description="pieces into which a batch is split to save memory; must divide batch_size; "
        "each counts the same, and the last is logged; 'auto' takes as few as fit a GPU, measured "
        "before the run",
    )
    processes: Annotated[int, Interval(ge=1, le=65_536)] = Field(
        1, description="processes of one run, under torchrun; one for each GPU"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="what several processes hold: 'ddp' each the whole model; 'fsdp' each a share "
        "of weights, gradients and optimizer, for what does not fit one GPU",
    )
    log_every_steps: Count = Field(50, description="steps between lines of metrics.jsonl")
    checkpoint_every_steps: Count = Field(1000, description="steps between checkpoints")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="'auto' is bfloat16 autocast on CUDA, float32 elsewhere"
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile the step; 'auto' does on a GPU where a trial works and is "
        "faster; 'on' insists",
    )
    start_from: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="weights to begin with: a run folder, a file, timm:ID or timm:MODEL=FILE "
        "(--from); default: random ones",
    )
    start_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="checksum that the file of start_from must have; written by each run"
    )
    start_parts: tuple[Literal["encoder", "head", "targets", "optimizer"], ...] = Field(
        ("encoder",),
        description="what is taken from start_from: 'encoder', 'head', 'targets', 'optimizer'",
    )
    extended: tuple[Count, ...] = Field(
        (),
        description="steps at which the run had ended before it was extended (--extend); at each "
        "the learning rate warms up again",
    )

    @field_validator("total_epochs")
    @classmethod
    def _one_budget(cls, total_epochs: float | None, info: ValidationInfo) -> float | None:
        if "total_steps" in info.data and (info.data["total_steps"] is None) is (
            total_epochs is None
        ):
            given = "neither" if total_epochs is None else "both"
            raise ValueError(
                f"exactly one of total_steps and total_epochs must be given, not {given}"
            )
        return total_epochs

    @field_validator("warmup_epochs")
    @classmethod
    def _one_warmup(cls, warmup_epochs: float | None, info: ValidationInfo) -> float | None:
        if warmup_epochs is not None and info.data.get("warmup_steps") is not None:
            raise ValueError("only one of warmup_steps and warmup_epochs may be given")
        return warmup_epochs

    @field_validator("extended")
    @classmethod
    def _ascends(cls, extended: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        ends = [*extended, info.data.get("total_steps") or 0]
        if extended and any(a >= b for a, b in pairwise(ends)):
            raise ValueError(f"must ascend to below total_steps ({ends[-1]}), but is {ends[:-1]}")
        return extended

    @field_validator("accumulate")
    @classmethod
    def _divides_batch_size(
        cls, accumulate: Literal["auto"] | int, info: ValidationInfo
    ) -> Literal["auto"] | int:
        batch_size = info.data.get("batch_size", 0)
        if accumulate != "auto" and batch_size % accumulate:
            raise ValueError(f"must divide batch_size ({batch_size}), but is {accumulate}")
        return accumulate


SECTIONS: Final[dict[str, type[Strict]]] = {
    "data": DataSection,
    "augment": AugmentSection,
    "train": TrainSection,
}
"""Tables of a recipe by their names."""
