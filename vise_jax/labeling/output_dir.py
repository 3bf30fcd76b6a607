"""The output directory of a labeling job: its lock, the job it belongs to, and leftovers of interrupted jobs."""

import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vise_jax import artifact
from vise_jax.errors import UserError
from vise_jax.labeling.input_split import InputSplit, is_labeled, parse_record

log = logging.getLogger(__name__)

# The lock of a directory of shards. It stays there.
LOCK = "records/.lock"


def holds_something(directory: Path) -> bool:
    """Return whether a path exists and is not an empty directory."""
    with artifact.explained(directory):
        return directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


def locked(directory: Path, lock: str = ".lock") -> contextlib.AbstractContextManager[None]:
    """Keep other jobs out of a directory.

    Raises:
        UserError: another job has it, or it holds a link.
    """
    artifact.refuse_links(directory)
    busy = f"Another job is writing into {directory}: wait until it is done, or name a new directory."
    return artifact.lock(directory / lock, busy)


def empty(directory: Path) -> None:
    """Remove everything but the lock."""
    for entry in directory.iterdir():
        if entry.name == ".lock":
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def check_job(output: Path, job: dict[str, Any]) -> None:
    """Check that a directory that is not empty holds this job.

    Raises:
        UserError: it holds something else.
    """
    with artifact.explained(output):
        missing = not (output / "job.json").is_file()
    if missing:
        entries = {path.relative_to(output).as_posix() for path in output.rglob("*")} if output.is_dir() else {"file"}
        if entries <= {"records", LOCK} or all(".tmp-" in name for name in entries - {"records", LOCK}):
            return  # of a job that was killed before it wrote job.json
        raise UserError(f"{output} holds something that is no labeling job: name a new directory.")
    path = output / "job.json"
    theirs = artifact.parse_json(path.read_bytes(), path, "restore it, or name a new directory")
    if {**theirs, "excluded": job["excluded"]} != job:
        raise UserError(f"{output} holds the shards of another labeler or other labels keys: name a new directory.")
    if theirs != job:
        raise UserError(
            f"{output} was begun with another --exclude: finish it with that one, and take posts out of it with "
            "`label.py relabel`; or name a new directory."
        )


def clear(output: Path, input_splits: Sequence[InputSplit]) -> None:
    """Remove leftovers of killed jobs, and records of files that were changed since.

    Raises:
        UserError: the directory holds shards of other files.
    """
    clear_temporary(output)
    complete = (output / "manifest.json").exists()
    names = {input_split.name for input_split in input_splits}
    given = {input_split.path.name for input_split in input_splits}
    replaced: Counter[str] = Counter()
    for name in sorted(artifact.sizes(output / "records")):
        path = output / "records" / name
        if path.suffix != ".json" or path.stem.rpartition("-")[0] in names:
            continue
        record = parse_record(path.read_bytes(), path)
        if complete or record["file"] not in given:
            raise UserError(
                f"{output} holds shards of posts that are not given now ({record['file']}, or it was changed since): "
                "give the same files again, or name a new directory."
            )
        replaced[record["file"]] += len(record["shards"])
        path.unlink()
    for name, count in replaced.items():
        log.warning(f"{name} was changed since it was labeled: its {count:,} shards are written again.")
    missing = [input_split for input_split in input_splits if complete and not is_labeled(input_split, output)]
    if missing:
        raise UserError(f"{output} is complete without the posts of {missing[0].path.name}: name a new directory.")


def clear_temporary(output: Path) -> None:
    """Remove temporary files of killed jobs."""
    if not artifact.is_remote(output):
        for temporary in (*output.glob(".*.tmp-*"), *output.glob("records/.*.tmp-*")):
            temporary.unlink()


def remove(output: Path) -> None:
    """Remove the files of a job that has written no shard."""
    artifact.remove_tree(output / "records")
    clear_temporary(output)
    (output / "job.json").unlink(missing_ok=True)
    if not artifact.is_remote(output):
        with contextlib.suppress(OSError):
            output.rmdir()
