"""Disturb each job on purpose, and count how it ends: signals, stand-stills, full disks, damage, rights, the network.

    python benchmarks/faults.py --kills 20
    python benchmarks/faults.py --only train,label --kills 100 --seed 1

Each job runs in its own process on a small simulated corpus. After a fault the same command runs again: "equal" are
those that ended with the bytes of a job that was left alone, "refused" those that said in a sentence what is wrong, and
"alone" those after which only the damaged file differs. Signals are SIGKILL, SIGTERM and SIGINT in turn, at random
moments. A full disk is a file system in memory that is smaller than what the job writes: it takes the right to mount
one. Damage cuts a file of a killed job, or flips a bit. Rights to read and write are taken from a file or directory,
and given back. `train_two` is a run of two processes, each in its own network namespace (which takes the right to make
one); the network between them is cut for a second, and for good.

The exit status is 1 where a job ended with other bytes or a traceback. The last line is one JSON object.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "shared"))

from absl import flags
from faulty_jobs import JOBS
from harness import Harness
from rich.console import Console
from rich.table import Table
from two_hosts import TwoHosts

from vise_jax import cli

QUICK = flags.DEFINE_bool("quick", False, "Two jobs, few faults: a smoke test.")
KILLS = flags.DEFINE_integer("kills", None, "Signals that hit each job; by default 20.", 1)
OTHERS = flags.DEFINE_integer("others", None, "Faults of each other kind; by default 6.", 0)
ONLY = flags.DEFINE_list("only", None, f"Jobs; by default all: {', '.join(JOBS)}.")
KINDS = ("signals", "stand-stills", "full disks", "damage", "rights", "network")
SEED = flags.DEFINE_integer("seed", 0, "Seed of moments and places.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    kills = KILLS.value or (3 if QUICK.value else 20)
    others = (1 if QUICK.value else 6) if OTHERS.value is None else OTHERS.value
    jobs = ONLY.value or (["label", "extract"] if QUICK.value else list(JOBS))
    table, counts = Table("job", "seconds", *KINDS), {}
    with contextlib.ExitStack() as stack:
        hosts, directory = None, Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if "train_two" in jobs:
            try:
                hosts = stack.enter_context(TwoHosts())
            except PermissionError as error:
                print(f"two processes were not tried: {error}", flush=True)
                jobs.remove("train_two")
        harness = Harness(directory, SEED.value, hosts)
        for job in jobs:
            ends = {"signals": harness.kills(job, kills), "stand-stills": harness.freezes(job, others)}
            try:
                ends["full disks"] = harness.full_disks(job, others)
            except PermissionError as error:
                print(f"full disks were not tried: {error}", flush=True)
            ends |= {"damage": harness.damages(job, others), "rights": harness.lockouts(job, others)}
            if job == "train_two":
                ends["network"] = harness.cuts(others) + harness.cuts(others, seconds=1)
            counts[job] = {kind: dict(of_kind) for kind, of_kind in ends.items()}
            cells = [", ".join(f"{end} {n}" for end, n in sorted(ends.get(kind, {}).items())) or "-" for kind in KINDS]
            table.add_row(job, f"{harness.seconds(job):.1f}", *cells)
            print(job, counts[job], flush=True)
        found = harness.found
    Console(width=200).print(table)
    for line in found:
        print(line)
    print(json.dumps({"benchmark": "faults", "kills": kills, "others": others, "seed": SEED.value, "ends": counts}))
    well = {
        "alone",
        "equal",
        "refused",
        "had room",
        "nothing to damage",
        "needed it",
        "did without",
        "was noticed",
        "was survived",
    }
    if any(end not in well for of_job in counts.values() for of_kind in of_job.values() for end in of_kind):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
