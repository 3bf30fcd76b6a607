"""The fit job: posts files give a labeler."""

import contextlib
import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
from ml_collections import ConfigDict

from vise_jax import artifact, hosts
from vise_jax.engagement import fit_statistics, hashing, reactions
from vise_jax.engagement.comments import vectors_sha256
from vise_jax.engagement.fit_statistics import Corpus
from vise_jax.engagement.fitting import check_not_empty, fit_corpus
from vise_jax.engagement.labeler import PATHS, Labeler
from vise_jax.errors import Interrupted, UserError
from vise_jax.labeling import beam_runner, local_runner, output_dir
from vise_jax.labeling.input_split import (
    READ_KEYS,
    SHARD_KEYS,
    InputSplit,
    describe_inputs,
    limits,
    split_posts_files,
)
from vise_jax.posts import Post, RejectLog, read

log = logging.getLogger(__name__)

# Keys that decide the gathered statistics.
_GATHERED = (
    *READ_KEYS,
    *("comment_encoder", "cluster_fraction", "max_comments", "max_fit_comments", "max_fit_reactions"),
    *("split_megabytes", "repair_encoding", "languages", "reactions", "other_reactions", "min_reactions", "seed"),
)
# Seconds after which a silent process counts as dead.
_HEARTBEAT_SECONDS = 100
# Keys that decide nothing of the labeler.
_NOT_FITTED = (
    *(key for key in SHARD_KEYS if key not in READ_KEYS),
    *PATHS,
    "max_rejected_fraction",
    "min_posts_to_stop",
)


@hosts.explained()
def fit(
    paths: Sequence[Path],
    labels: ConfigDict,
    output: Path,
    *,
    exclude: Path | None = None,
    workers: int = 0,
    beam_options: Sequence[str] | None = None,
    distributed: str = "off",
) -> Labeler:
    """Fit a labeler on posts files and save it, unless `output` holds the labeler of the same files and keys.

    Several processes call it alike, with an output that they share: the first reads the posts, all run K-means.

    The statistics of the input splits and the state of K-means are kept in a directory `.NAME.fit` beside the output
    until the labeler is saved; in the directory for temporary files where the output is in an object store. Only the
    owner can read it, since it holds words of comments. The other processes keep the vectors of the comments in their
    directories for temporary files.

    Args:
        paths: posts files.
        labels: the `labels` section of a config.
        output: the labeler's directory.
        exclude: file with post ids to leave out, one per line.
        workers: number of processes that read posts; 0 = this process.
        beam_options: read the posts on Apache Beam instead, with these options of its pipeline.
        distributed: how to join the other processes, as `training.distributed` (see `hosts.initialize`).

    Raises:
        UserError: the processes can't be joined or reached, invalid input, nothing to fit on, or an output directory
            that holds something else.
    """
    hosts.initialize(distributed, _HEARTBEAT_SECONDS)
    output = output.absolute()
    work = _work(output)
    with contextlib.ExitStack() as stack:
        if jax.process_index() > 0:
            stack.callback(shutil.rmtree, work, ignore_errors=True)
        begun = hosts.on_first(lambda: _begin(paths, labels, output, work, exclude, workers, beam_options, stack))
        if hosts.from_first(begun is not None):
            labeler = fit_corpus(begun and begun.corpus, labels, work)

            def save() -> None:
                fitted, about = cast(Labeler, labeler).fitted, cast(_Begun, begun).about
                replace(cast(Labeler, labeler), fitted={**fitted, **about}).save(output)

            hosts.on_first(save)
        # A fit that was killed after it saved the labeler has left it.
        hosts.on_first(lambda: shutil.rmtree(work, ignore_errors=True))
    return Labeler.load(output)


def _work(output: Path) -> Path:
    """Return the directory of what this process keeps during a fit: the first one's is beside an output on disk."""
    if jax.process_index() > 0 or artifact.is_remote(output):
        return artifact.scratch(output, f"fit-{jax.process_index()}")
    return output.with_name(f".{output.name}.fit")


class _Begun(NamedTuple):
    """The statistics of the posts, and what the labeler tells about them."""

    corpus: Corpus
    about: dict[str, Any]


def _begin(
    paths: Sequence[Path],
    labels: ConfigDict,
    output: Path,
    work: Path,
    exclude: Path | None,
    workers: int,
    beam_options: Sequence[str] | None,
    stack: contextlib.ExitStack,
) -> _Begun | None:
    """Gather the statistics in a locked `work`; return None if `output` holds the labeler already."""
    hashing.make_salt(labels.salt_file)
    secret = hashing.salt(labels.salt_file, labels.seed)
    # Clusters are made without images.
    excluded = hashing.read_excluded(exclude, secret)._replace(images=())
    input_splits = split_posts_files(paths, labels)
    keys = {key: value for key, value in labels.items() if key not in _NOT_FITTED}
    inputs = describe_inputs(input_splits)
    vectors = vectors_sha256(labels)
    files = sorted(file["sha256"] for file in inputs)
    checks = [vectors, hashing.salt_check(secret), hashing.exclusion_check(excluded)]
    origin = artifact.fingerprint([files, keys, *checks])
    if output_dir.holds_something(output):
        if Labeler.load(output).fitted.get("origin") != origin:
            raise UserError(f"{output} holds a labeler of other posts or other labels keys: name a new directory.")
        return None
    # Only the keys that decide the statistics: with another number of clusters nothing is read again.
    gathered = {key: labels[key] for key in _GATHERED}
    origin_of_statistics = artifact.fingerprint([files, gathered, *checks, beam_options is not None])
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    stack.enter_context(output_dir.locked(work))
    if not (work / "origin").exists() or (work / "origin").read_text() != origin_of_statistics:
        output_dir.empty(work)
        artifact.write_text(work / "origin", origin_of_statistics)
    gather = partial(_gather, labels.to_dict(), exclude)
    try:
        if beam_options is None:
            local_runner.each(partial(_gather_to, gather, work), input_splits, workers, "reading")
            corpus = Corpus.empty(labels)
            for input_split in input_splits:
                corpus.merge(_load_or_gather(gather, work, input_split, labels))
        else:
            if not (work / "fit_statistics.json.gz").exists():
                beam_runner.gather(gather, input_splits, labels, work / "fit_statistics.json.gz", beam_options)
            corpus = Corpus.load(work / "fit_statistics.json.gz", labels)
    except UserError as error:
        if not isinstance(error, Interrupted) and not any(work.glob("*.json.gz")):
            shutil.rmtree(work)
        raise
    unmatched = hashing.count_unmatched(exclude, excluded, corpus.counts["matched"])
    try:
        check_not_empty(corpus, labels)
    except UserError:
        shutil.rmtree(work)
        raise
    about = {
        "origin": origin,
        "inputs": inputs,
        "vectors": vectors,
        "rejected": dict(sorted(corpus.rejected.items())),
        "notes": dict(sorted(corpus.notes.items())),
        "unmatched": unmatched,
    }
    return _Begun(corpus, about)


def _gather(
    labels: dict[str, Any], exclude: Path | None, input_split: InputSplit, after_post: Callable[[], None] = lambda: None
) -> Corpus:
    """Gather the statistics of an input split."""
    config = ConfigDict(labels)
    input_split.check_unchanged()
    reject_log = RejectLog(input_split.path, config.max_rejected_fraction, config.min_posts_to_stop)
    secret = hashing.salt(config.salt_file, config.seed)

    def posts() -> Iterator[Post]:
        for post in read(
            input_split.path,
            reject_log,
            input_split.start,
            input_split.end,
            reactions.buttons(config),
            limits(config),
        ):
            after_post()
            yield post

    corpus = fit_statistics.gather(posts(), config, hashing.read_excluded(exclude, secret).posts)
    input_split.check_unchanged()
    corpus.rejected.update(reject_log.rejected)
    corpus.notes.update(reject_log.notes)
    return corpus


def _load_or_gather(gather: Callable[..., Corpus], work: Path, input_split: InputSplit, labels: ConfigDict) -> Corpus:
    """Load the statistics of an input split, or gather them again if their file is damaged."""
    path = work / f"{input_split.name}.json.gz"
    try:
        return Corpus.load(path, labels)
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        log.warning(f"{path} is damaged ({error}): {input_split.path.name} is read again.")
        path.unlink()
        _gather_to(gather, work, input_split, lambda: None)
        return Corpus.load(path, labels)


def _gather_to(
    gather: Callable[..., Corpus], work: Path, input_split: InputSplit, after_post: Callable[[], None]
) -> None:
    path = work / f"{input_split.name}.json.gz"
    if not path.exists():
        gather(input_split, after_post).save(path)
