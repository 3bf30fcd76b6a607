"""Fuzz every reader of foreign files, guided by the coverage of `vise_jax` (libFuzzer, through atheris).

    python benchmarks/fuzz.py --seconds 60
    python benchmarks/fuzz.py --only "posts, tar;weights" --seconds 600 --seed 1 --output findings

Each reader runs in its own process, from valid files that are mutated with what they contain (members of archives,
values of JSON, records). A finding is any exception but a `UserError`, 20 seconds for an input, 4 GiB of memory, or the
end of the process. Findings are written to --output, one directory each; tests/faults keeps those that were fixed.

The exit status is 1 where there are findings. The last line is one JSON object. Needs Linux and pip install atheris.
"""

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

from absl import flags
from rich.console import Console
from rich.table import Table

from vise_jax import cli

QUICK = flags.DEFINE_bool("quick", False, "Two readers, three seconds each: a smoke test.")
SECONDS = flags.DEFINE_integer("seconds", 60, "Seconds for each reader.", 1)
ONLY = flags.DEFINE_string("only", None, "Names of readers, with semicolons between them; by default all.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the mutations.", 0)
OUTPUT = flags.DEFINE_string("output", None, "Directory for the inputs of findings.")
_MOST_SECONDS, _MOST_MEGABYTES, _MOST_BYTES = 20, 4096, 1 << 20


def _fuzz(name: str, seconds: int, seed: int, directory: Path) -> None:
    """Fuzz one reader until the time is over, in a process of its own: libFuzzer ends it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    with open(directory / "log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    import atheris

    # Tracebacks of TensorStore's threads, see `vise_jax.cli`.
    sys.unraisablehook = lambda raised: None
    with atheris.instrument_imports(include=["vise_jax"]):
        import hostile_files
        import mutations

        reader = hostile_files.Fuzzed(hostile_files.READERS[name], directory / "files")
    names = list(reader.files)
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, file in enumerate(names):
        (corpus / f"{number}").write_bytes(number.to_bytes(2, "big") + reader.files[file])
    # "\n" ends a line that is complete.
    results = open(directory / "results.jsonl", "a", buffering=1, encoding="utf-8")  # noqa: SIM115 (as long as the process)
    seen: set[str] = set()

    def one_input(data: bytes) -> None:
        file = names[int.from_bytes(data[:2], "big") % len(names)]
        (directory / "input").write_bytes(data)
        finding = reader.check(file, data[2:])
        key = finding.what.split(": ")[0] if finding else ""
        if finding and key not in seen:
            seen.add(key)
            (directory / f"finding{len(seen)}").write_bytes(finding.content)
            entry = {"what": finding.what, "file": file, "trace": finding.trace, "number": len(seen)}
            results.write(json.dumps(entry) + "\n")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        # Another file, now and then.
        if draw.random() < 0.3:
            number = draw.randrange(len(names))
            data = number.to_bytes(2, "big") + reader.files[names[number]]
        return (data[:2] + mutations.mutated(data[2:], draw))[:most]

    limits = [f"-max_total_time={seconds}", f"-timeout={_MOST_SECONDS}", f"-rss_limit_mb={_MOST_MEGABYTES}"]
    limits += [f"-max_len={_MOST_BYTES}", f"-seed={seed + 1}", f"-artifact_prefix={directory}/", "-print_final_stats=1"]
    atheris.Setup(["fuzz", *limits, str(corpus)], one_input, custom_mutator=mutate)
    atheris.Fuzz()


def _run(name: str, seconds: int, directory: Path) -> dict[str, Any]:
    """Fuzz a reader; return the number of `inputs`, the peak of memory in `megabytes`, and the `findings`."""
    process = multiprocessing.get_context("spawn").Process(target=_fuzz, args=(name, seconds, SEED.value, directory))
    process.start()
    process.join()
    log = (directory / "log").read_text(errors="replace")
    results = directory / "results.jsonl"
    findings = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if process.exitcode:
        reason = next((line for line in log.splitlines() if "ERROR:" in line), log.strip()[-300:] or "no log")
        findings.append({"what": f"the process ended with {process.exitcode}: {reason}", "number": "-last"})
        if (directory / "input").exists():
            (directory / "finding-last").write_bytes((directory / "input").read_bytes())
    inputs, megabytes = (_statistic(log, name) for name in ("number_of_executed_units", "peak_rss_mb"))
    return {"inputs": inputs, "megabytes": megabytes, "findings": findings}


def _statistic(log: str, name: str) -> int:
    return max((int(line.split()[-1]) for line in log.splitlines() if line.startswith(f"stat::{name}:")), default=0)


def main(words: list[str]) -> None:
    cli.no_words(words)
    from hostile_files import READERS

    names = ONLY.value.split(";") if ONLY.value else ["posts, tar", "features"] if QUICK.value else list(READERS)
    seconds = 3 if QUICK.value else SECONDS.value
    table, counts = Table("reader", "seconds", "inputs", "peak MB", "findings"), {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(OUTPUT.value or temporary)
        for number, name in enumerate(names):
            (directory := root / f"{number:02d}").mkdir(parents=True)
            began = time.monotonic()
            found = _run(name, seconds, directory)
            counts[name] = {**found, "findings": [one["what"] for one in found["findings"]]}
            took = f"{time.monotonic() - began:.0f}"
            table.add_row(name, took, f"{found['inputs']:,}", f"{found['megabytes']:,}", str(len(found["findings"])))
            print(name, counts[name], flush=True)
    Console(width=160).print(table)
    print(json.dumps({"benchmark": "fuzz", "seconds": seconds, "seed": SEED.value, "readers": counts}))
    if any(of_reader["findings"] or not of_reader["inputs"] for of_reader in counts.values()):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
