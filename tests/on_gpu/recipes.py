"""Settings of the shipped recipes that several stages share."""

from pathlib import Path
from typing import Final

from on_gpu.work import Work

ROOT: Final = Path(__file__).parents[2]
"""The project's folder."""


def at_224(work: Work, recipe: str) -> list[str]:
    """Returns the settings of a recipe at 224 px for this machine."""
    sizes = work.sizes
    found = [
        f"train.batch_size={sizes.batch_size}",
        "train.accumulate=1",
        f"data.workers={sizes.workers}",
    ]
    if recipe.startswith(("beit", "cae")):
        found.append(f'targets.tokens.weights="{work.tokenizer}"')
        found.append(f"targets.tokens.codebook_size={sizes.codebook_size}")
    return found


def evaluations(tables: dict[str, str]) -> str:
    """Returns the setting that evaluates so: name of the evaluator to its options."""
    listed = [f'{{part = "{name}"{options and ", "}{options}}}' for name, options in tables.items()]
    return f"evaluate=[{', '.join(listed)}]"
