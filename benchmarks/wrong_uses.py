"""Use each script wrongly, and check that it says in a sentence what is wrong, where, and what to do.

    python benchmarks/wrong_uses.py --count 40
    python benchmarks/wrong_uses.py --only "train.py;label.py fit" --count 100 --seed 1

A wrong use lacks a flag, or has a wrong value: a path of something else, damaged, too long or without permission, a URL
of another scheme, a number that is none, a config of another kind or with an error. Uses that turn out to be right are
counted, too. The exit status is 1 where a command ended with a traceback or without advice. The last line is one JSON
object.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

from absl import flags
from rich.console import Console
from rich.table import Table
from wrong_uses import COMMANDS, Runner, problems, uses

from vise_jax import cli

QUICK = flags.DEFINE_bool("quick", False, "Two commands, three uses each: a smoke test.")
COUNT = flags.DEFINE_integer("count", 40, "Wrong uses of each command.", 1)
ONLY = flags.DEFINE_string("only", None, f"Commands, with semicolons between them; by default {'; '.join(COMMANDS)}.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice of uses.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    commands = ONLY.value.split(";") if ONLY.value else ["demo.py", "convert.py"] if QUICK.value else list(COMMANDS)
    count = 3 if QUICK.value else COUNT.value
    table, counts = Table("command", "seconds", "refused", "accepted", "problems"), {}
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(Path(name))
        for command in commands:
            began, ends, found = time.monotonic(), Counter[str](), []
            for use in uses(command, count, SEED.value):
                end = runner.run(command, use)
                ends["refused" if end.status else "accepted"] += 1
                found += [
                    f"{command} {' '.join(use.words)}: {what}: {end.said.strip()[-300:]}" for what in problems(use, end)
                ]
            counts[command] = {**ends, "problems": len(found)}
            took = f"{time.monotonic() - began:.0f}"
            table.add_row(command, took, str(ends["refused"]), str(ends["accepted"]), str(len(found)))
            print("\n".join([f"{command} {counts[command]}", *found]), flush=True)
    Console(width=120).print(table)
    print(json.dumps({"benchmark": "wrong_uses", "count": count, "seed": SEED.value, "commands": counts}))
    if any(of_command["problems"] for of_command in counts.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
