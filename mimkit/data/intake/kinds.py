"""What files are that are no images here, and what to do with them."""

import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from PIL import Image

ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_HEIC: Final = "a HEIC photograph; convert it to JPEG: magick mogrify -format jpg *.heic"
_RAW: Final = "a camera's raw photograph; convert it to JPEG or PNG"
_PICKLE: Final = "pickled Python, which is never opened; write its images out as PNG"
_KINDS: Final = {
    **dict.fromkeys((".heic", ".heif"), _HEIC),
    **dict.fromkeys((".cr2", ".nef", ".arw", ".dng", ".raf"), _RAW),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".joblib"), _PICKLE),
    **dict.fromkeys((".dcm",), "a DICOM image; convert it to PNG, with dcm2img or pydicom"),
    **dict.fromkeys((".svg",), "a drawing (SVG); convert it to PNG"),
    **dict.fromkeys((".nii",), "a volume (NIfTI); write its slices out as PNG"),
    **dict.fromkeys((".jp2", ".jxl"), "JPEG 2000 or JPEG XL; convert it to PNG or JPEG"),
    **dict.fromkeys(
        (".npy",), "an array of numpy, which is an image only where no other images lie"
    ),
    **dict.fromkeys((".npz",), "arrays of numpy in one file; write each image to a file, .npy"),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), "an HDF5 or Matlab file; write its images as PNG"),
    **dict.fromkeys((".tfrecord",), "TFRecords; write its images out as PNG or as parquet"),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv"), "a video; write its frames out as JPEG"),
    **dict.fromkeys((".7z", ".rar"), "an archive that is not read here; unpack it"),
    **dict.fromkeys((".mdb", ".lmdb"), "an LMDB; write its images out as PNG or as parquet"),
    **dict.fromkeys((".arrow",), "an Arrow file; give the folder that save_to_disk wrote"),
}
_JSON: Final = "JSON; a table of files and labels must be CSV or JSON lines"
_MAGIC: Final = (
    (4, b"ftypheic", _HEIC),
    (4, b"ftypheix", _HEIC),
    (4, b"ftypmif1", _HEIC),
    (0, b"\x89HDF", _KINDS[".h5"]),
    (0, b"\x93NUMPY", "one array of numpy; give the folder that holds one for each image"),
    (0, b"7z\xbc\xaf", _KINDS[".7z"]),
    (0, b"Rar!", _KINDS[".rar"]),
    (0, b"\x80\x04", _PICKLE),
    (0, b"ARROW1", _KINDS[".arrow"]),
    (0, b"%PDF", "a PDF; write its pictures out as PNG"),
)
_HEAD: Final = 16


def reason(name: str) -> str:
    """Why a file is passed over that is no image by its name."""
    kind = _KINDS.get(Path(name).suffix.lower())
    return f"is {kind}" if kind else "is not an image by its name"


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar."""
    with path.open("rb") as file:
        head = file.read(4)
    return head in (b"PK\x03\x04", b"PK\x05\x06") or (
        path.name.lower().endswith(ARCHIVES) and tarfile.is_tarfile(path)
    )


def is_parquet(path: Path) -> bool:
    """Whether a file is parquet, by its content or, where it is damaged, by its name."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1" or path.suffix.lower() == ".parquet"


def describe(path: Path) -> str:
    """Says of a file that is no data set what it is, and what to do.

    Raises: OSError if it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "an empty file"
    for start, magic, kind in _MAGIC:
        if head[start:].startswith(magic):
            return kind
    try:
        with Image.open(path) as image:
            bands = len(image.getbands())
            return (
                f"one image ({image.format}, {image.width} x {image.height} px, {bands} "
                f"band{'' if bands == 1 else 's'}); give the folder in which it lies"
            )
    except Exception:  # Pillow may raise anything on a file that is damaged or no image
        if head.startswith((b"II*\0", b"MM\0*")):
            return (
                f"a TIFF that Pillow does not read ({_bands(path)}); write its bands out as "
                "images of one or three"
            )
    known = {**_KINDS, ".json": _JSON, ".xml": "a file of annotations, not of images"}
    return known.get(path.suffix.lower(), "a file of an unknown kind")


def census(names: Iterable[str]) -> str:
    """Counts files by their extensions, the most frequent first."""
    counts = Counter(Path(name).suffix.lower() or "no extension" for name in names)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(4))


def advice(names: Iterable[str]) -> str:
    """What to do with files that are no images, where that is known."""
    kinds = Counter(Path(name).suffix.lower() for name in names)
    for kind, _ in kinds.most_common():
        if kind in _KINDS:
            return f" A {kind} file is {_KINDS[kind]}."
        if kind in ARCHIVES:
            return " Name the archive itself, or unpack it."
    return ""


def _bands(path: Path) -> str:
    from PIL import TiffImagePlugin  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(tags.next)
            tags.load(file)
        return f"{tags.get(277, 1)} bands"
    except Exception:  # Pillow may raise anything on a file that is damaged or no image
        return "an odd layout"
