r"""Report results, clusters and runs: a table of measurements, a page of the clusters, curves of training runs.

With --results: a table, printed and written as table.md and table.csv, and sensitivity.html, heat maps of validation
and test over the settings that were tried. With --labeler and --shards: index.html, a page
that needs no network, and its figures as PNG files; the largest comment clusters are printed. It holds no one's
comments, unless --posts and --show-examples request some of each cluster: mentions, links, e-mail addresses and phone
numbers are masked then, names written as plain words are not. It shows no image, unless --show-duplicates requests the
largest groups of near-duplicates. With --runs: training.html, a page that needs no network,
and PNG files with the curves of one or several runs, also of runs that are under way; the last values and the config
keys that differ are printed.

Example:
    python scripts/report.py --results RESULTS --output REPORT
    python scripts/report.py --labeler LABELER --shards SHARDS --output REPORT
    python scripts/report.py --labeler LABELER --shards SHARDS --posts 'POSTS/*.jsonl' --show-examples 3 --output REPORT
    python scripts/report.py --labeler LABELER --shards SHARDS --show-duplicates 10 --output REPORT
    python scripts/report.py --runs RUN,OTHER_RUN --output REPORT
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

from vise_jax import artifact, cli
from vise_jax.errors import UserError
from vise_jax.posts import Post, RejectLog, expand, read
from vise_jax.progress import track

_RESULTS = flags.DEFINE_string("results", None, "The directory that evaluate.py wrote results to.")
_REFERENCE = flags.DEFINE_string(
    "reference", "", "With --results: an encoder's name; differences to it are printed, by a paired bootstrap."
)
_LABELER = flags.DEFINE_string("labeler", None, "The labeler that label.py fit wrote.")
_SHARDS = flags.DEFINE_string("shards", None, "The shards that label.py run wrote with that labeler.")
_POSTS = flags.DEFINE_string("posts", None, "For --show-examples: a glob of posts files, or several with commas.")
_SHOW_EXAMPLES = flags.DEFINE_integer("show-examples", 0, "Comments of each cluster on the page.", lower_bound=0)
_SHOW_DUPLICATES = flags.DEFINE_integer(
    "show-duplicates", 0, "Groups of near-duplicate images on the page, the largest.", lower_bound=0
)
_EXCLUDE = flags.DEFINE_string("exclude", None, "A file with ids of posts whose comments are not shown, one a line.")
_RUNS = flags.DEFINE_list("runs", [], "Run directories of train.py, with commas between them.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory for the tables, pages and figures.")


def main(words: list[str]) -> None:
    """Read everything there is to report, then write and print it."""
    cli.no_words(words)
    output = cli.location(_OUTPUT)
    about_clusters = any(flag.value for flag in (_LABELER, _SHARDS, _POSTS, _SHOW_EXAMPLES, _SHOW_DUPLICATES))
    if _RESULTS.value is None and not about_clusters and not _RUNS.value:
        raise UserError("say what to report, --results, --runs or --labeler and --shards: see --help for an example.")
    if _REFERENCE.value and _RESULTS.value is None:
        raise UserError("--reference is for --results, whose encoders it compares: leave it out.")
    if _EXCLUDE.value and not _POSTS.value:
        raise UserError("--exclude is for --posts, without which no one's words are shown: leave it out.")
    summary = _read_clusters() if about_clusters else None
    if _RUNS.value:
        _curves([artifact.location(run) for run in _RUNS.value], output)
    if _RESULTS.value is not None:
        _table(cli.location(_RESULTS), output)
    if summary is not None:
        _page(*summary, output)


def _table(directory: Path, output: Path) -> None:
    from vise_jax.evaluation import results
    from vise_jax.reporting import sensitivity, tables

    measurements = results.read_all(directory)
    tables.show(tables.write(measurements, output))
    page = sensitivity.write(measurements, output)
    print(f"written: {output / 'table.md'}, {output / 'table.csv'} and {page}, heat maps of the settings")
    if _REFERENCE.value:
        tables.show_comparisons(directory, measurements, _REFERENCE.value)


def _curves(directories: list[Path], output: Path) -> None:
    from vise_jax.reporting import curves, runs

    every = runs.read(directories)
    curves.write(every, output)
    runs.show(every)
    print(f"written: {output / 'training.html'}, and its figures as PNG files beside it")


def _read_clusters() -> tuple[dict[str, Any], dict[int, list[str]], dict[str, Any]]:
    """Return the summary of the clusters, the requested examples, and what is known of near-duplicates."""
    labeler_folder, shards_folder = cli.location(_LABELER), cli.location(_SHARDS)
    if bool(_POSTS.value) != bool(_SHOW_EXAMPLES.value):
        raise UserError("--posts and --show-examples=NUMBER go together: give both, or none to show no one's words.")
    paths = expand(_POSTS.value) if _POSTS.value else []
    from vise_jax.engagement import hashing
    from vise_jax.engagement.reactions import buttons
    from vise_jax.reporting import clusters, duplicates

    labeler, statistics = clusters.read(labeler_folder, shards_folder)
    excluded = frozenset(hashing.read_ids(artifact.location(_EXCLUDE.value))) if _EXCLUDE.value else frozenset()
    every = itertools.chain.from_iterable(
        read(path, RejectLog(path), buttons=buttons(labeler.labels)) for path in paths
    )
    matched = set()

    def not_excluded() -> Iterator[Post]:
        for post in every:
            if post.post_id in excluded:
                matched.add(post.post_id)
            else:
                yield post

    examples = clusters.draw_examples(labeler, track(not_excluded(), "drawing examples", "posts"), _SHOW_EXAMPLES.value)
    if excluded and not matched:
        raise UserError(f"None of the ids in --exclude={_EXCLUDE.value} is that of a post: give one post id per line.")
    near = duplicates.read(shards_folder, _SHOW_DUPLICATES.value)
    return clusters.summarize(labeler, statistics), examples, near


def _page(summary: dict[str, Any], examples: dict[int, list[str]], duplicates: dict[str, Any], output: Path) -> None:
    from vise_jax.reporting import clusters, page

    page.write(summary, examples, output, duplicates)
    clusters.show(summary)
    print(f"written: {output / 'index.html'}, and its figures as PNG files beside it")


if __name__ == "__main__":
    cli.run(main, __doc__)
