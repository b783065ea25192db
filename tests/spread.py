"""Trains recipes in several processes, once as "ddp" and once as "fsdp", and compares the weights.

A program for torchrun: PROCESSES of it, with OUT and any number of JSON tables
{"name", "recipe", "settings"}. OUT/NAME.json gets the greatest difference of each tensor, and why
"fsdp" was refused, if it was; OUT/NAME/ddp and OUT/NAME/fsdp are run folders.
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from test_resume_recipes import miniature

from mimkit.errors import RecipeError
from mimkit.folder import RunFolder
from mimkit.pipeline.assemble import open_run
from mimkit.pipeline.run import pretrain
from mimkit.train.distributed import join


def train(recipe, folder, world):
    """Pre-trains; gives all weights, in the leading process."""
    with RunFolder(folder, writable=world.leads) as opened:
        current = open_run(recipe, opened, world, Console(quiet=True))
        pretrain(current)
    return {name: value.clone() for name, value in current.pretrainer.state_dict().items()}


def differences(ddp, fsdp):
    assert ddp.keys() == fsdp.keys()
    return {n: (ddp[n].double() - fsdp[n].double()).abs().max().item() for n in ddp}


def main(out, *cases):
    with join("cpu") as world:
        for case in map(json.loads, cases):
            found, refused = {}, None
            for parallel in ("ddp", "fsdp"):
                settings = [*case["settings"], f"train.parallel={parallel}"]
                recipe = miniature(Path(case["recipe"]), settings=settings)
                try:
                    found[parallel] = train(recipe, Path(out, case["name"], parallel), world)
                except RecipeError as error:
                    refused = str(error)
            if world.leads:
                told = {"refused": refused} if refused else {"differences": differences(**found)}
                Path(out, f"{case['name']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
