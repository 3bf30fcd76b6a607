"""The labeling jobs: posts files to a labeler, posts files with a labeler to engagement shards, and back out of them.

`label_part` writes shards and their records; what is here claims folders, hands out parts, and has a manifest written,
which comes last and makes the folder an artifact. The same command goes on where it was stopped.
"""

import contextlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.data import shards
from vise_jax.engagement import fit_statistics, hashing
from vise_jax.engagement.comments import vectors_sha256
from vise_jax.engagement.fit_statistics import Corpus
from vise_jax.engagement.labeler import PATHS, Labeler
from vise_jax.errors import Interrupted, UserError
from vise_jax.labeling import beam_runner, local_runner
from vise_jax.labeling.input_split import SHARD_KEYS, Part, checked_salt, is_labeled, label_part, parts_of
from vise_jax.labeling.manifest import excluded_in, finish, read_records, without
from vise_jax.posts import Post, RejectLog, is_empty, read

# What decides nothing of what is fitted.
# What decides the statistics that are gathered; splits of another size have the same names.
_GATHERED = (
    *("comment_encoder", "cluster_fraction", "max_comments", "max_fit_comments", "max_fit_reactions"),
    *("part_megabytes", "seed"),
)
_NOT_FITTED = (*SHARD_KEYS, *PATHS, "max_rejected_fraction", "min_posts_to_stop")
# The lock of an output directory. It stays there.
_LOCK = "records/.lock"
# What a labeler decides, whatever the config of a later run says.
_LABELER_KEYS = ("cluster_fraction", "max_comments", "label_weights", "seed")


def fit(
    paths: Sequence[Path],
    labels: ConfigDict,
    output: Path,
    *,
    exclude: Path | None = None,
    workers: int = 0,
    beam_options: Sequence[str] | None = None,
) -> Labeler:
    """Fit a labeler on posts files and save it; one that was made from the same files and keys is kept.

    What the parts gave, and the state of K-means, lie in a folder `.NAME.fit` beside the output until the labeler is
    saved; nobody else can read it, since it holds what people wrote.

    Args:
        paths: posts files.
        labels: the `labels` section of a config.
        output: the labeler's folder.
        exclude: file with post ids to leave out, one a line.
        workers: processes that read posts; 0 = none but this one.
        beam_options: read the posts on Apache Beam instead, with these options of its pipeline.

    Raises:
        UserError: bad input, nothing to fit on, or an output folder that holds something else.
    """
    hashing.make_salt(labels.salt_file)
    secret = hashing.salt(labels.salt_file, labels.seed)
    excluded = hashing.read_excluded(exclude, secret)
    parts = _parts(paths, labels)
    keys = {key: value for key, value in labels.items() if key not in _NOT_FITTED}
    inputs = _inputs(parts)
    vectors = vectors_sha256(labels)
    files = sorted(file["sha256"] for file in inputs)
    origin = artifact.fingerprint([files, keys, vectors, hashing.salt_check(secret), _excluded_check(excluded)])
    output = output.absolute()
    work = output.with_name(f".{output.name}.fit")
    if _holds_something(output):
        labeler = Labeler.load(output)
        if labeler.fitted.get("origin") != origin:
            raise UserError(f"{output} holds a labeler of other posts or other labels keys: name a new folder.")
        # Of a fit that was killed when it had saved the labeler.
        shutil.rmtree(work, ignore_errors=True)
        return labeler
    # Only what decides the gathered statistics: with another number of clusters nothing is read again.
    gathered = {key: labels[key] for key in _GATHERED}
    begun = artifact.fingerprint(
        [files, gathered, vectors, hashing.salt_check(secret), _excluded_check(excluded), beam_options is not None]
    )
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(work):
        if not (work / "origin").exists() or (work / "origin").read_text() != begun:
            _empty(work)
            artifact.write_text(work / "origin", begun)
        gather = partial(_gather, labels.to_dict(), exclude)
        try:
            if beam_options is None:
                local_runner.each(partial(_gather_to, gather, work), parts, workers, "reading")
                found = Corpus.empty(labels)
                for part in parts:
                    found.merge(Corpus.load(work / f"{part.name}.json.gz", labels))
            else:
                if not (work / "fit_statistics.json.gz").exists():
                    beam_runner.gather(gather, parts, labels, work / "fit_statistics.json.gz", beam_options)
                found = Corpus.load(work / "fit_statistics.json.gz", labels)
        except UserError as error:
            if not isinstance(error, Interrupted) and not any(work.glob("*.json.gz")):
                shutil.rmtree(work)
            raise
        unmatched = _unmatched(exclude, excluded, found.counts["matched"])
        if not found.counts["comments"] and not found.counts["reactions"]:
            shutil.rmtree(work)  # nothing was gathered, and the next line says so
            return Labeler.from_corpus(found, labels)
        # An error keeps what was gathered: the same posts with other clusters don't have to be read again.
        labeler = Labeler.from_corpus(found, labels, work)
        about = {
            "origin": origin,
            "inputs": inputs,
            "vectors": vectors,
            "rejected": dict(sorted(found.rejected.items())),
            "notes": dict(sorted(found.notes.items())),
            "unmatched": unmatched,
        }
        labeler = replace(labeler, fitted={**labeler.fitted, **about})
        labeler.save(output)
        shutil.rmtree(work)
    return labeler


def _gather(
    labels: dict[str, Any], exclude: Path | None, part: Part, after_post: Callable[[], None] = lambda: None
) -> Corpus:
    """The corpus of a part."""
    config = ConfigDict(labels)
    part.check_unchanged()
    reject_log = RejectLog(part.path, config.max_rejected_fraction, config.min_posts_to_stop)
    secret = hashing.salt(config.salt_file, config.seed)

    def posts() -> Iterator[Post]:
        for post in read(part.path, reject_log, part.start, part.end):
            after_post()
            yield post

    found = fit_statistics.gather(posts(), config, hashing.read_excluded(exclude, secret))
    part.check_unchanged()
    found.rejected, found.notes = reject_log.rejected, reject_log.notes
    return found


def _gather_to(gather: Callable[..., Corpus], work: Path, part: Part, after_post: Callable[[], None]) -> None:
    path = work / f"{part.name}.json.gz"
    if not path.exists():
        gather(part, after_post).save(path)


def run(
    paths: Sequence[Path],
    labeler: Path,
    labels: ConfigDict,
    output: Path,
    *,
    exclude: Path | None = None,
    workers: int = 0,
    beam_options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Label posts files into a folder of engagement shards; go on where an earlier run of the same job was stopped.

    Args:
        paths: posts files.
        labeler: the folder of what decides the labels and the splits.
        labels: the `labels` section of a config.
        output: the folder of the shards.
        exclude: file with post ids to leave out, one a line.
        workers: processes that label; 0 = none but this one. Their number does not change a byte.
        beam_options: label on Apache Beam instead, with these options of its pipeline.

    Returns:
        The manifest; that of the finished folder, if the job was done before.

    Raises:
        UserError: bad input, no example at all, an output folder that holds something else or that another job is
            writing.
    """
    fitted = Labeler.load(labeler)
    for key in _LABELER_KEYS:
        if labels[key] != fitted.labels[key]:
            print(
                f"labels.{key} is {fitted.labels[key]}, as the labeler was fitted, and not {labels[key]} as in the "
                "config: fit again to change it.",
                file=sys.stderr,
            )
    secret = checked_salt(fitted, labels)
    excluded = hashing.read_excluded(exclude, secret)
    parts = _parts(paths, labels)
    job = {
        "format_version": shards.FORMAT_VERSION,
        "kind": "labeling job",
        "labeler": fitted.fingerprint,
        "salt_check": fitted.salt_check,
        "labels": {
            **{key: value for key, value in fitted.labels.items() if key not in PATHS},
            **{key: labels[key] for key in SHARD_KEYS},
        },
        "excluded": _excluded_check(excluded),
    }
    if _holds_something(output):
        _check_job(output, job)
    (output / "records").mkdir(parents=True, exist_ok=True)
    with _locked(output, _LOCK):
        try:
            artifact.write_json(output / "job.json", job)
            _clear(output, parts)
            if (output / "manifest.json").exists():
                return shards.read_manifest(output)
            work = partial(_label, labeler.absolute(), labels.to_dict(), exclude, output.absolute())
            todo = [part for part in parts if not is_labeled(part, output)]
            if beam_options is None:
                local_runner.each(work, todo, workers, "labeling")
            elif todo:
                beam_runner.each(work, todo, beam_options)
            matched = sum(record["excluded"] for record in read_records(output))
            unmatched = _unmatched(exclude, excluded, matched)
            return finish(output, job, fitted.classes, _inputs(parts), unmatched)
        except BaseException:
            if not any(output.glob("*.tfrecord")):
                _remove(output)
            raise


@cache
def _labeler(folder: Path) -> Labeler:
    """A worker labels many parts with one labeler."""
    return Labeler.load(folder)


def _label(
    labeler: Path,
    labels: dict[str, Any],
    exclude: Path | None,
    output: Path,
    part: Part,
    after_post: Callable[[], None],
) -> None:
    config, fitted = ConfigDict(labels), _labeler(labeler)
    excluded = hashing.read_excluded(exclude, checked_salt(fitted, config))
    label_part(part, fitted, config, excluded, output, after_post)


def relabel(output: Path, labels: ConfigDict, labeler: Path, exclude: Path) -> dict[str, Any]:
    """Take posts out of finished shards: only the shards that hold them are written again, under new names.

    Readers of the old manifest are not disturbed: the old shards go when the new manifest is there.

    Args:
        output: the folder of the shards.
        labels: the `labels` section of a config, for the salt.
        labeler: the folder of the labeler that the shards were made with.
        exclude: file with post ids to leave out, one a line.

    Returns:
        The manifest.

    Raises:
        UserError: the folder is not finished, of another labeler, or used by another job; or no example would be left.
    """
    before = shards.read_manifest(output)
    fitted = Labeler.load(labeler)
    if before["labeler"] != fitted.fingerprint:
        raise UserError(
            f"The shards {output} were not made with the labeler {labeler}: give the one they were made with."
        )
    excluded = hashing.read_excluded(exclude, checked_salt(fitted, labels))
    gone = {bytes.fromhex(post_id.decode()) for post_id in excluded}
    with _locked(output, _LOCK):
        _clear_temporary(output)
        job = json.loads((output / "job.json").read_text("utf-8"))
        matched = set(excluded_in(output, gone))
        deleted = sum(record.get("deleted", 0) for record in read_records(output))
        if excluded and not (matched or deleted or before["excluded"]):
            _unmatched(exclude, excluded, 0)
        for path in sorted((output / "records").glob("*.json")):
            record = json.loads(path.read_text("utf-8"))
            kept = {split: without(output, shard, gone) for split, shard in record["shards"].items()}
            if kept != record["shards"]:
                left = sum(shard["examples"] for shard in kept.values() if shard)
                removed = sum(shard["examples"] for shard in record["shards"].values()) - left
                record["deleted"] = record.get("deleted", 0) + removed
                record["shards"] = {split: shard for split, shard in kept.items() if shard}
                artifact.write_json(path, record)
        # Lists grow: ids that were deleted before count as matched.
        unmatched = max(len(gone) - len(matched) - deleted, 0)
        return finish(output, job, fitted.classes, before["inputs"], unmatched, before)


def _parts(paths: Sequence[Path], labels: ConfigDict) -> list[Part]:
    """The parts of all posts files, whatever order these are given in."""
    files: dict[str, Path] = {}
    parts: list[Part] = []
    for path in paths:
        found = parts_of(path, labels)
        if found[0].sha256 in files and is_empty(path):
            continue
        if found[0].sha256 in files:
            raise UserError(f"{files[found[0].sha256]} and {path} hold the same posts: give only one of them.")
        files[found[0].sha256] = path
        parts.extend(found)
    return sorted(parts, key=lambda part: part.name)


def _inputs(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Name and SHA-256 of each posts file."""
    return [{"name": part.path.name, "sha256": part.sha256} for part in parts if part.number == 0]


def _excluded_check(excluded: frozenset[bytes]) -> str:
    return artifact.fingerprint(sorted(post_id.decode() for post_id in excluded))


def _unmatched(exclude: Path | None, excluded: frozenset[bytes], matched: int) -> int:
    """Return the number of ids of the exclusion list that no post has.

    Raises:
        UserError: none of them matches, so that the list can't be what was meant.
    """
    if excluded and not matched:
        raise UserError(
            f"None of the {len(excluded):,} ids in --exclude={exclude} is that of a post: give one post id per line, "
            "as in the posts files."
        )
    return max(len(excluded) - matched, 0)


def _holds_something(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _locked(directory: Path, lock: str = ".lock") -> contextlib.AbstractContextManager[None]:
    """Keep other jobs out of a directory."""
    busy = f"Another job is writing into {directory}: wait until it is done, or name a new directory."
    return artifact.lock(directory / lock, busy)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == ".lock":
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _check_job(output: Path, job: dict[str, Any]) -> None:
    """Check that a folder that holds something holds this job."""
    if not (output / "job.json").is_file():
        entries = {path.relative_to(output).as_posix() for path in output.rglob("*")} if output.is_dir() else {"file"}
        if entries <= {"records", _LOCK} or all(".tmp-" in name for name in entries - {"records", _LOCK}):
            return  # of a job that was killed before it wrote job.json
        raise UserError(f"{output} holds something that is no labeling job: name a new folder.")
    found = json.loads((output / "job.json").read_text("utf-8"))
    if {**found, "excluded": job["excluded"]} != job:
        raise UserError(f"{output} holds the shards of another labeler or other labels keys: name a new folder.")
    if found != job:
        raise UserError(
            f"{output} was begun with another --exclude: finish it with that one, and take posts out of it with "
            "`label.py relabel`; or name a new folder."
        )


def _clear(output: Path, parts: Sequence[Part]) -> None:
    """Remove what killed runs have left, and the shards of files that were changed since."""
    _clear_temporary(output)
    complete = (output / "manifest.json").exists()
    names, given = {part.name for part in parts}, {part.path.name for part in parts}
    replaced: Counter[str] = Counter()
    for path in sorted((output / "records").glob("*.json")):
        if path.stem.rpartition("-")[0] in names:
            continue
        record = json.loads(path.read_text("utf-8"))
        if complete or record["file"] not in given:
            raise UserError(
                f"{output} holds shards of posts that are not given now ({record['file']}, or it was changed since): "
                "give the same files again, or name a new folder."
            )
        replaced[record["file"]] += len(record["shards"])
        path.unlink()
    for name, count in replaced.items():
        print(f"{name} was changed since it was labeled: its {count:,} shards are made again.", file=sys.stderr)
    missing = [part for part in parts if complete and not is_labeled(part, output)]
    if missing:
        raise UserError(f"{output} is complete without the posts of {missing[0].path.name}: name a new folder.")


def _clear_temporary(output: Path) -> None:
    for temporary in (*output.glob(".*.tmp-*"), *output.glob("records/.*.tmp-*")):
        temporary.unlink()


def _remove(output: Path) -> None:
    """Take back what an attempt that made no shard has written."""
    shutil.rmtree(output / "records", ignore_errors=True)
    _clear_temporary(output)
    (output / "job.json").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        output.rmdir()
