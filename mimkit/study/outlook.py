"""What the runs of a plan will take."""

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from mimkit import words
from mimkit.memory import machine_bytes
from mimkit.report.findings import Cell
from mimkit.study.budget import describe
from mimkit.study.records import Method, Plan, Trial
from mimkit.study.tuning import Setting


def table(plan: Plan, jobs: int, finished: Collection[Cell] = ()) -> Table:
    """Lays the plan out for people.

    Args:
        plan: what will run.
        jobs: runs at once.
        finished: those of its cells that need not run again.
    """
    found = Table(
        "",
        *(method.label for method in plan.methods),
        title=f"{len(plan.cells)} runs on {plan.dataset}: {describe(plan.budget, plan.tune)} for "
        "each method and seed",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in found.columns[1:]:
        column.justify = "right"
    found.columns[0].no_wrap = True
    rows: dict[str, Callable[[Method], str]] = {
        "recipe": lambda method: Path(method.source).name,
        "steps": lambda method: f"{method.total_steps:,}",
        "batch": lambda method: f"{method.batch_size:,}",
        "GFLOP/image": lambda method: f"{method.trial.flops_per_image / 1e9:.2f}",
        "trainable": lambda method: words.magnitude(method.trial.parameters["trainable"]),
        "memory": lambda method: words.memory(method.trial.peak_memory_bytes),
        "prepare": lambda method: _estimated(method.trial),
        "pre-train": lambda method: words.duration(method.pretrain_seconds),
        "judge": lambda method: words.duration(method.evaluate_seconds),
    }
    if not _owed(plan):
        del rows["prepare"]
    for name, written in rows.items():
        found.add_row(name, *(written(method) for method in plan.methods))
    left = seconds_of(plan, jobs, finished=finished)
    disk = words.memory(len(plan.seeds) * sum(m.disk_bytes for m in plan.methods))
    found.caption = f"{words.about(left)} with --jobs {jobs}, {disk} of disk"
    if finished:
        found.caption += f"; {len(finished)} of {len(plan.cells)} runs are finished already"
    return found


def trials_table(
    plan: Plan,
    planned: Sequence[tuple[str, Setting, Method]],
    jobs: int,
    finished: Collection[Cell] = (),
) -> Table:
    """Lays the trials of a comparison out for people.

    Args:
        plan: of the trials.
        planned: each with the label of its method and what it tries.
        jobs: trials at once.
        finished: those that need not be made again.
    """
    options = dict.fromkeys(name for _, setting, _ in planned for name in setting.options)
    found = Table(
        *("", "trial", "learning rate", *options, "steps", "pre-train", "judge"),
        title=f"{len(planned)} trials first: a tenth of {describe(plan.budget)} for each",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in found.columns[1:]:
        column.justify = "right"
    for label, setting, method in planned:
        found.add_row(
            label if setting.number == 1 else "",
            str(setting.number),
            f"x {setting.factor:g}",
            *(
                f"{setting.options[name]:g}" if name in setting.options else words.MISSING
                for name in options
            ),
            f"{method.total_steps:,}",
            words.duration(method.pretrain_seconds),
            words.duration(method.evaluate_seconds),
        )
    left = seconds_of(plan, jobs, finished=finished)
    found.caption = f"{words.about(left)} with --jobs {jobs}"
    if finished:
        found.caption += f"; {len(finished)} of {len(planned)} trials are finished already"
    return found


def _owed(plan: Plan) -> float:
    """Estimates what targets need first; what several methods share is made once."""
    return sum({k: s for m in plan.methods for k, s in m.trial.owed.items()}.values())


def _estimated(trial: Trial) -> str:
    return f"~ {words.duration(sum(trial.owed.values()))}" if trial.owed else words.MISSING


def seconds_of(
    plan: Plan, jobs: int, *, images: float | None = None, finished: Collection[Cell] = ()
) -> float:
    """Estimates how long a comparison takes, with what targets still need.

    Args:
        plan: what will run.
        jobs: runs at once.
        images: that each run would see instead; evaluations are then taken to grow as training
            does.
        finished: those of its cells that need not run again.
    """
    one = {
        m.label: m.total_steps * m.trial.seconds_per_step + m.evaluate_seconds for m in plan.methods
    }
    cells = sum(one[cell.method] for cell in plan.cells if cell not in finished)
    share = 1.0 if images is None else images / plan.budget.amount
    return _owed(plan) + share * cells / jobs


def warnings(plan: Plan, jobs: int, folder: Path) -> list[str]:
    """Says what this machine may have too little of.

    Args:
        plan: what will run.
        jobs: runs at once on this machine.
        folder: where they will lie.
    """
    found = []
    if len(plan.seeds) * sum(m.disk_bytes for m in plan.methods) > _free_disk(folder):
        found.append("The disk may be too small for all runs.")
    together, machine = memory_of(plan, jobs), machine_bytes()
    if machine is not None and together > machine:
        found.append(
            f"{jobs} runs at once may need {words.memory(together)} of memory, and this machine "
            f"has {words.memory(machine)}. Fewer at once: --jobs."
        )
    return found


def memory_of(plan: Plan, jobs: int) -> int:
    """Estimates the bytes of main memory that the largest runs need which are at work at once."""
    on_cpu = [m.trial.peak_memory_bytes for m in plan.methods if m.trial.device.startswith("CPU")]
    return sum(sorted(on_cpu * len(plan.seeds), reverse=True)[:jobs])


def _free_disk(folder: Path) -> int:
    place = folder
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
