"""Run the quick form of each benchmark in `expected.json` and compare its ratios with those there.

    python benchmarks/regressions.py
    python benchmarks/regressions.py --only step,kmeans
    python benchmarks/regressions.py --update        # write what was measured to expected.json, for this processor
    python benchmarks/regressions.py --update --only object_stores        # another one, too

Ratios are compared, never seconds: both sides of a ratio ran in turns on this machine. Quick forms have few rounds, so
each benchmark has a tolerance, measured as the spread of repeated runs. A ratio below its expected value by more is a
regression, and the exit status is 1. Expected ratios are those of a processor; on one without any, nothing is compared
but what is compiled. A peer that is not installed is not measured.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

from absl import flags
from measuring import processor
from rich.console import Console
from rich.table import Table

from vise_jax import artifact, cli
from vise_jax.errors import UserError

EXPECTED = Path(__file__).with_name("expected.json")
# Ratios of compiled programs are the same everywhere, and those of seconds are a processor's.
COMPILED, ANYWHERE = "compiled", "any"
# Largest relative decrease of a ratio that is noise, where `expected.json` names none.
TOLERANCE = 0.3

ONLY = flags.DEFINE_list("only", None, "Names of benchmarks; by default those of expected.json.")
UPDATE = flags.DEFINE_bool("update", False, "Write the ratios to expected.json instead of comparing them.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    here = Path(__file__)
    there = sorted(path.stem for path in here.parent.glob("*.py") if path != here)
    if unknown := sorted(set(ONLY.value or ()) - set(there)):
        raise UserError(f"--only has no {unknown[0]!r}: choose from {', '.join(there)}.")
    expected = json.loads(EXPECTED.read_text())
    names = ONLY.value or sorted(expected)
    measured = {name: ratios_of(name) for name in names}
    if UPDATE.value:
        artifact.write_json(EXPECTED, updated(expected, measured))
        return
    rows = compare(measured, {name: expected.get(name, {}) for name in names})
    if not any(processor() in of_benchmark["ratios"] for of_benchmark in expected.values()):
        print(f"{EXPECTED.name} has no ratios of this processor, {processor()}: --update writes them.")
    table = Table(title="Ratios to peers; above 1 this project is ahead", title_justify="left")
    for column in ("benchmark", "peer", "expected", "measured", ""):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    if worse := [f"{name} to {peer}" for name, peer, _, _, verdict in rows if verdict == "REGRESSION"]:
        raise UserError(
            f"Slower than expected: {', '.join(worse)}. Run the full benchmark on an idle machine to be sure."
        )


def place(name: str) -> str:
    """Return where the ratios of a benchmark are in `expected.json`: a processor, or `ANYWHERE`."""
    return ANYWHERE if name == COMPILED else processor()


def ratios_of(name: str) -> dict[str, float]:
    """Run the quick form of a benchmark and return its ratios by peer.

    Raises:
        UserError: the benchmark fails, or has no ratios.
    """
    command = [sys.executable, str(EXPECTED.with_name(f"{name}.py")), "--quick"]
    print(" ".join(command[1:]), flush=True)
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise UserError(f"{command[1]} --quick failed with status {run.returncode}: see above.")
    found = json.loads(run.stdout.splitlines()[-1])
    if "ratios" not in found:
        raise UserError(f"{command[1]} compares nothing: leave it out.")
    return {peer: round(ratio["median"], 3) for peer, ratio in found["ratios"].items()}


def updated(expected: dict[str, Any], measured: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return `expected` with what was measured here; peers that are not installed here keep their ratios."""
    for name, ratios in measured.items():
        of_benchmark = expected.setdefault(name, {"tolerance": TOLERANCE, "ratios": {}})["ratios"]
        of_benchmark[place(name)] = of_benchmark.get(place(name), {}) | dict(ratios)
    return expected


def compare(
    measured: Mapping[str, Mapping[str, float]], expected: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, str, str, str, str]]:
    """Return a row for each ratio, in text: benchmark, peer, expected ratio, measured ratio, verdict."""
    rows = []
    for name, of_benchmark in expected.items():
        tolerance = of_benchmark.get("tolerance", TOLERANCE)
        before, now = of_benchmark.get("ratios", {}).get(place(name), {}), measured[name]
        for peer in sorted(before.keys() | now.keys()):
            texts = [f"{ratios[peer]:.2f}" if peer in ratios else "not measured" for ratios in (before, now)]
            worse = peer in before and peer in now and now[peer] < before[peer] * (1 - tolerance)
            rows.append((name, peer, *texts, "REGRESSION" if worse else ""))
    return rows


if __name__ == "__main__":
    cli.run(main, __doc__)
