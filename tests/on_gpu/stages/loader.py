"""How many photographs a second the loader processes deliver; a tiny network asks for them."""

from mimkit.bench import bench
from mimkit.console import make_console
from mimkit.recipe.schema import load
from on_gpu.recipes import at_224
from on_gpu.work import Work


def run(work: Work) -> None:
    """Measures as ``mimkit bench`` does."""
    chosen = load(
        "mae_in224",
        preset="tiny",
        overrides=at_224(work, "mae_in224"),
        data_path=str(work.photos),
    )
    measured = bench(chosen, device=work.device, steps=2, console=make_console())
    work.tell("loader processes", work.sizes.workers)
    work.tell("images/s of the loader", measured.loader_rate)
    work.tell("images/s, each process", measured.loader_rate / work.sizes.workers)
