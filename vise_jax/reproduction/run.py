"""Show and run a plan."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vise_jax.errors import UserError
from vise_jax.reproduction.plan import MEASURED_ON, Plan, Settings, Step

_NOTHING = "–"


def show(plan: Plan, images_per_second: Mapping[str, float], measured: bool) -> None:
    """Print the steps as a table, and their commands.

    Args:
        plan: of an experiment.
        images_per_second: training speed by backbone.
        measured: whether the speeds are those of `plan.MEASURED`.
    """
    where = f"estimated for {MEASURED_ON}" if measured else "estimated from --images_per_second"
    if plan.settings != Settings():
        where += ", with the paper's settings"
    table = Table(title=plan.experiment.title, title_justify="left", caption=f"device hours: {where}")
    table.add_column("", justify="right")
    table.add_column("step", overflow="fold")
    table.add_column("device hours", justify="right")
    table.add_column("state", overflow="fold")
    for number, step in enumerate(plan.steps, start=1):
        table.add_row(str(number), Text(step.name), _hours(step, images_per_second), Text(state(step)))
    left = [step.hours(images_per_second) or 0.0 for step in plan.steps if not step.is_done]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    print(f"{len(left)} of {len(plan.steps)} steps are left, about {sum(left):,.0f} device hours.\n")
    for number, step in enumerate(plan.steps, start=1):
        print(f"[{number}] {command(step)}")


def state(step: Step) -> str:
    """Return "done", "to do", or what is needed below the workdir."""
    if step.is_done:
        return "done"
    return f"needs {'; '.join(step.needs)}" if step.needs else "to do"


def command(step: Step) -> str:
    """Return the command line, to be run in the repository's root."""
    return f"python {shlex.join(step.words)}"


def run(plan: Plan, root: Path) -> None:
    """Run the steps that are left and whose needs are met, in order.

    Compiled programs are kept in the workdir, unless JAX has a cache already.

    Args:
        plan: of an experiment.
        root: the repository, in which the scripts are.

    Raises:
        UserError: a command failed. The same plan resumes there.
    """
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(plan.workdir / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        **os.environ,
    }
    for number, step in enumerate(plan.steps, start=1):
        if step.is_done or step.needs:
            continue
        print(f"[{number} of {len(plan.steps)}] {step.name}", flush=True)
        words = [_resolved(word) for word in step.words]
        status = subprocess.run([sys.executable, *words], cwd=root, env=environment, check=False).returncode
        if status == -2 or status == 130:
            raise KeyboardInterrupt
        if status:
            raise UserError(
                f"Step {number}, {step.name}, ended with exit status {status}: correct what its message says, and run "
                f"the same command again. It was: {command(step)}"
            )
        if not step.is_done:
            raise UserError(
                f"Step {number}, {step.name}, has not written {step.output}: see what it prints. It was: "
                f"{command(step)}"
            )


def _resolved(word: str) -> str:
    """Return the one file that a word ending in `/*.json` stands for, other words as they are."""
    if not word.endswith("/*.json"):
        return word
    (path,) = Path(word).parent.glob("*.json")
    return str(path)


def _hours(step: Step, images_per_second: Mapping[str, float]) -> str:
    hours = step.hours(images_per_second)
    if hours is None:
        return "unknown"
    return f"{hours:,.1f}" if hours else _NOTHING
