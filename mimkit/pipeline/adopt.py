"""Whose run a folder holds: that of the recipe, nobody's, or another one's."""

from rich.console import Console

from mimkit.errors import DataError, MimkitError
from mimkit.files import write_text
from mimkit.folder import RunFolder
from mimkit.ownership import is_written_out
from mimkit.pipeline.assemble import needs_targets
from mimkit.recipe.difference import Difference, differences, listed
from mimkit.recipe.extension import extends
from mimkit.recipe.schema import Recipe, load, resolved
from mimkit.recipe.settle import settle, settle_as
from mimkit.train.guard import PATIENCE


def refuse_another(folder: RunFolder, recipe: Recipe, fresh: bool) -> None:
    """Refuses at once a folder that `adopt` is sure to refuse, whatever parts may yet decide.

    Raises: DataError if the folder holds another recipe's run, or a recipe that mimkit did not
        write.
    """
    if folder.recipe.exists() and not is_written_out(folder.recipe):
        raise DataError(
            f"{folder.recipe}: must be a recipe that mimkit wrote, but is another one, and is left "
            "as it is. Move it elsewhere and run it from there, or choose another folder with "
            "--out."
        )
    if fresh or not folder.recipe.exists() or not _is_in_the_way(folder):
        return
    held = _held(folder)
    if extends(recipe, held):
        return
    found = differences(held, recipe)
    if any(not each.is_option for each in found):
        raise _another(folder, found)


def adopt(folder: RunFolder, recipe: Recipe, fresh: bool, console: Console) -> Recipe:
    """Makes the run folder this recipe's, or refuses one that belongs to another.

    A run of another recipe is in nobody's way if nothing was trained in it: it is replaced. One
    that NaN stopped can never end, so it is set aside, into a folder of its own.

    Returns: the recipe with everything settled.
    Raises: DataError that names the keys that differ.
    """
    settled = settle(recipe, console.print) if needs_targets(recipe) else recipe
    if fresh:  # not before: a part may find that it cannot be had
        folder.clear()
    if not folder.recipe.exists():
        write_text(folder.recipe, resolved(settled))
        return settled
    try:
        held = _held(folder)
    except MimkitError:  # as where a plugin is gone
        if folder.holds_work:
            raise
    else:
        if recipe.same_as(held):  # an import leaves open what its first run settles
            # Nor does it matter where the data lie, or how a step is computed.
            if resolved(settled) != resolved(held):
                write_text(folder.recipe, resolved(settled))
            return settled
        as_before = settle_as(recipe, settled, held)
        if as_before.same_as(held) or extends(as_before, held):
            if resolved(as_before) != resolved(held):
                write_text(folder.recipe, resolved(as_before))
            return as_before
        if _is_in_the_way(folder):
            raise _another(folder, differences(held, as_before))
    if folder.holds_work:
        aside = folder.set_aside()
        console.print(f"the run that NaN stopped here, of another recipe, now lies in {aside}")
    else:
        folder.clear()
    write_text(folder.recipe, resolved(settled))
    return settled


def _held(folder: RunFolder) -> Recipe:
    return load(str(folder.recipe))


def _is_in_the_way(folder: RunFolder) -> bool:
    return folder.holds_work and not was_stopped(folder)


def was_stopped(folder: RunFolder) -> bool:
    """Whether the loss or its gradient was not finite in so many steps that the run stopped."""
    ledger = folder.read_ledger()
    last = [item["step"] for item in ledger.get("skipped_steps", ())][-PATIENCE:]
    in_a_row = len(last) == PATIENCE and last[-1] - last[0] == PATIENCE - 1
    return in_a_row and "evaluate" not in ledger.get("seconds", {})


def _another(folder: RunFolder, found: list[Difference]) -> DataError:
    said = (
        f"{folder.path}: this folder holds a run of another recipe than the one asked for "
        f"({listed(found)})."
    )
    if all(each.key.partition(".")[0] == "evaluate" for each in found):
        return DataError(
            f"{said} Its encoder is judged in other ways, and nothing is trained again, by: mimkit "
            f"evaluate {folder.path} --evaluate NAME,... or --set 'evaluate=[...]'"
        )
    if [each.key for each in found] == ["train.total_steps"]:
        return DataError(
            f"{said} Where it is finished, it goes on to more steps by: mimkit run {folder.path} "
            "--extend STEPS. Else choose another folder with --out, or start anew with --fresh, "
            "which removes that run."
        )
    return DataError(
        f"{said} Choose another folder with --out, or start anew with --fresh, which removes that "
        "run."
    )
