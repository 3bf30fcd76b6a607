"""The fit job: posts files give a labeler."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.engagement import fit_statistics, hashing
from vise_jax.engagement.comments import vectors_sha256
from vise_jax.engagement.fit_statistics import Corpus
from vise_jax.engagement.fitting import fit_corpus
from vise_jax.engagement.labeler import PATHS, Labeler
from vise_jax.errors import Interrupted, UserError
from vise_jax.labeling import beam_runner, local_runner, output_dir
from vise_jax.labeling.input_split import SHARD_KEYS, InputSplit, describe_inputs, split_posts_files
from vise_jax.posts import Post, RejectLog, read

# Keys that decide the gathered statistics.
_GATHERED = (
    *("comment_encoder", "cluster_fraction", "max_comments", "max_fit_comments", "max_fit_reactions"),
    *("split_megabytes", "repair_encoding", "seed"),
)
# Keys that decide nothing of the labeler.
_NOT_FITTED = (*SHARD_KEYS, *PATHS, "max_rejected_fraction", "min_posts_to_stop")


def fit(
    paths: Sequence[Path],
    labels: ConfigDict,
    output: Path,
    *,
    exclude: Path | None = None,
    workers: int = 0,
    beam_options: Sequence[str] | None = None,
) -> Labeler:
    """Fit a labeler on posts files and save it, unless `output` holds the labeler of the same files and keys.

    The statistics of the input splits and the state of K-means are kept in a directory `.NAME.fit` beside the output
    until the labeler is saved. Only the owner can read it, since it holds words of comments.

    Args:
        paths: posts files.
        labels: the `labels` section of a config.
        output: the labeler's directory.
        exclude: file with post ids to leave out, one per line.
        workers: number of processes that read posts; 0 = this process.
        beam_options: read the posts on Apache Beam instead, with these options of its pipeline.

    Raises:
        UserError: invalid input, nothing to fit on, or an output directory that holds something else.
    """
    hashing.make_salt(labels.salt_file)
    secret = hashing.salt(labels.salt_file, labels.seed)
    excluded = hashing.read_excluded(exclude, secret)
    input_splits = split_posts_files(paths, labels)
    keys = {key: value for key, value in labels.items() if key not in _NOT_FITTED}
    inputs = describe_inputs(input_splits)
    vectors = vectors_sha256(labels)
    files = sorted(file["sha256"] for file in inputs)
    origin = artifact.fingerprint([files, keys, vectors, hashing.salt_check(secret), hashing.exclusion_check(excluded)])
    output = output.absolute()
    work = output.with_name(f".{output.name}.fit")
    if output_dir.holds_something(output):
        labeler = Labeler.load(output)
        if labeler.fitted.get("origin") != origin:
            raise UserError(f"{output} holds a labeler of other posts or other labels keys: name a new directory.")
        # A fit that was killed after it saved the labeler has left it.
        shutil.rmtree(work, ignore_errors=True)
        return labeler
    # Only the keys that decide the statistics: with another number of clusters nothing is read again.
    gathered = {key: labels[key] for key in _GATHERED}
    begun = artifact.fingerprint(
        [
            files,
            gathered,
            vectors,
            hashing.salt_check(secret),
            hashing.exclusion_check(excluded),
            beam_options is not None,
        ]
    )
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with output_dir.locked(work):
        if not (work / "origin").exists() or (work / "origin").read_text() != begun:
            output_dir.empty(work)
            artifact.write_text(work / "origin", begun)
        gather = partial(_gather, labels.to_dict(), exclude)
        try:
            if beam_options is None:
                local_runner.each(partial(_gather_to, gather, work), input_splits, workers, "reading")
                corpus = Corpus.empty(labels)
                for input_split in input_splits:
                    corpus.merge(Corpus.load(work / f"{input_split.name}.json.gz", labels))
            else:
                if not (work / "fit_statistics.json.gz").exists():
                    beam_runner.gather(gather, input_splits, labels, work / "fit_statistics.json.gz", beam_options)
                corpus = Corpus.load(work / "fit_statistics.json.gz", labels)
        except UserError as error:
            if not isinstance(error, Interrupted) and not any(work.glob("*.json.gz")):
                shutil.rmtree(work)
            raise
        unmatched = hashing.count_unmatched(exclude, excluded, corpus.counts["matched"])
        if not corpus.counts["comments"] and not corpus.counts["reactions"]:
            shutil.rmtree(work)  # nothing was gathered; the next line raises the error
            return fit_corpus(corpus, labels)
        # An error keeps the statistics: with another number of clusters the posts are not read again.
        labeler = fit_corpus(corpus, labels, work)
        about = {
            "origin": origin,
            "inputs": inputs,
            "vectors": vectors,
            "rejected": dict(sorted(corpus.rejected.items())),
            "notes": dict(sorted(corpus.notes.items())),
            "unmatched": unmatched,
        }
        labeler = replace(labeler, fitted={**labeler.fitted, **about})
        labeler.save(output)
        shutil.rmtree(work)
    return labeler


def _gather(
    labels: dict[str, Any], exclude: Path | None, input_split: InputSplit, after_post: Callable[[], None] = lambda: None
) -> Corpus:
    """Gather the statistics of an input split."""
    config = ConfigDict(labels)
    input_split.check_unchanged()
    reject_log = RejectLog(input_split.path, config.max_rejected_fraction, config.min_posts_to_stop)
    secret = hashing.salt(config.salt_file, config.seed)

    def posts() -> Iterator[Post]:
        for post in read(input_split.path, reject_log, input_split.start, input_split.end):
            after_post()
            yield post

    corpus = fit_statistics.gather(posts(), config, hashing.read_excluded(exclude, secret))
    input_split.check_unchanged()
    corpus.rejected.update(reject_log.rejected)
    corpus.notes.update(reject_log.notes)
    return corpus


def _gather_to(
    gather: Callable[..., Corpus], work: Path, input_split: InputSplit, after_post: Callable[[], None]
) -> None:
    path = work / f"{input_split.name}.json.gz"
    if not path.exists():
        gather(input_split, after_post).save(path)
