"""Small COCO files for tests."""

import json

import numpy as np
from PIL import Image

from mimkit.data.opening import open_sources
from mimkit.recipe.sections import DataSection

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]


def write_images(root, *names, size=(12, 16)):
    """Makes noise of height and width ``size``."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)


def annotation(image=1, category=1, bbox=(1, 1, 4, 4), segmentation=None, **more):
    found = {"image_id": image, "category_id": category, "bbox": list(bbox), **more}
    return found if segmentation is None else {**found, "segmentation": segmentation}


def coco(files, annotations=None, categories=("cat",), size=(12, 16)):
    """A tree of one box with an outline in each image, unless something else is given."""
    images = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]}
        for number, name in enumerate(files, start=1)
    ]
    if annotations is None:
        annotations = [annotation(image=each["id"], segmentation=[SQUARE]) for each in images]
    return {
        "images": images,
        "annotations": [{"id": k, **each} for k, each in enumerate(annotations, start=1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(categories, start=1)],
    }


def write_coco(path, *arguments, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(coco(*arguments, **options)))
    return path


def opened(root, **values):
    return open_sources(DataSection(name=str(root), image_size=8, patch_size=4, **values))
