"""Whether a change of the house changed a number: runs of every shipped recipe, bit for bit.

``python tests/equality.py FILE`` trains and judges every shipped recipe at
miniature size and makes one comparison, all on one thread. Where FILE does not exist, what came
out is written there: losses, results, tables, hashes of weights. Else it is compared with FILE,
every difference is named, and the exit code is 1 if there is one.

The order of work is: before the change, in a clone of it; then after the change, with the same FILE
on the same machine.
"""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file
from test_resume_recipes import QUICK, RECIPES, miniature

import mimkit
from mimkit.recipe.schema import resolved

NUM_IMAGES = 60
NUM_TEST_IMAGES = 40
HELDOUT = ({"part": "heldout", "num_images": 8},)
EVALUATE = (
    *HELDOUT,
    {"part": "knn"},
    {
        "part": "finetune",
        "label_fractions": [0.5],
        "seeds": 2,
        "total_steps": 2,
        "batch_size": 4,
        "lrs": [0.01, 0.03],
    },
    {
        "part": "linear_probe",
        "layers": "all",
        "label_fractions": [1.0],
        "weight_decays": [0.1, 1.0],
    },
    {
        "part": "attentive_probe",
        "total_steps": 2,
        "batch_size": 8,
        "lrs": [0.01, 0.03],
        "label_fractions": [0.5],
    },
)
"""Of one recipe of each method; the others are trained."""
CHANGES = ("seconds", "images_per_second", "time/step_ms", "peak_memory_bytes")
"""What no two runs have alike."""


def main(file: Path) -> int:
    """Records or compares; returns the exit code."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        os.environ["MIMKIT_CACHE"] = str(Path(scratch, "cache"))
        os.chdir(scratch)
        found = {str(path.stem): of_recipe(path, Path(scratch, path.stem)) for path in RECIPES}
        found["compare"] = of_comparison(Path(scratch, "compare"))
    if not file.exists():
        file.write_text(json.dumps(found, indent=1), encoding="utf-8")
        sys.stdout.write(f"{file}: {len(found) - 1} recipes and a comparison recorded\n")
        return 0
    expected = json.loads(file.read_text(encoding="utf-8"))
    differ = list(differences(expected, json.loads(json.dumps(found)), ""))
    sys.stdout.write(("\n".join(differ) or f"all {len(found)} equal to {file}, bit for bit") + "\n")
    return 1 if differ else 0


def of_recipe(path: Path, scratch: Path) -> dict[str, object]:
    """What a run of a recipe leaves."""
    scratch.mkdir()
    recipe = scratch / "recipe.toml"
    evaluate = EVALUATE if path.stem in QUICK else HELDOUT
    recipe.write_text(resolved(miniature(path, images=NUM_IMAGES, evaluate=evaluate)))
    folder = mimkit.run(
        recipe, settings=[f"data.num_test_images={NUM_TEST_IMAGES}"], device="cpu", out=scratch
    )
    return of_run(folder)


def of_comparison(scratch: Path) -> dict[str, object]:
    """What a comparison leaves: its tables, and its runs."""
    found = mimkit.compare(
        ["selfie", "mae"],
        dataset="shapes",
        budget="images=320",
        seeds=2,
        evaluate=["knn", "linear_probe"],
        settings=["data.num_images=200", "data.num_test_images=60"],
        device="cpu",
        jobs=1,
        out=scratch,
    )
    with (scratch / "results.csv").open(encoding="utf-8") as lines:
        table = [row for row in csv.DictReader(lines) if "second" not in " ".join(row.values())]
    return {
        "answer": str(found.answer),
        "table": table,
        "runs": {str(outcome.cell): of_run(outcome.folder) for outcome in found.outcomes},
    }


def of_run(folder: Path) -> dict[str, object]:
    """Losses, results and weights of a finished run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    encoder = load_file(folder / "encoder.safetensors")
    return {
        "losses": [without_times(json.loads(line)) for line in lines],
        "results": without_times(json.loads((folder / "results.json").read_text())),
        "encoder": {
            name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
            for name, tensor in encoder.items()
        },
    }


def without_times(held: object) -> object:
    """Takes away what no two runs have alike."""
    if isinstance(held, dict):
        return {
            key: without_times(value)
            for key, value in held.items()
            if not any(name in key for name in CHANGES)
        }
    return [without_times(value) for value in held] if isinstance(held, list) else held


def differences(expected: object, found: object, where: str) -> Iterator[str]:
    """Yields one line for each number that is not what it was."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in dict.fromkeys((*expected, *found)):
            yield from differences(expected.get(key), found.get(key), f"{where}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{where}/{number}")
    elif expected != found:
        yield f"{where}: was {str(expected)[:80]}, is {str(found)[:80]}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
