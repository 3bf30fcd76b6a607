r"""Make labels from engagement: fit a labeler on posts, then label posts into shards for scripts/train.py.

    python scripts/label.py fit --config configs/demo.py --posts 'POSTS/*.jsonl' --output LABELER
    python scripts/label.py run --config configs/demo.py --posts 'POSTS/*.jsonl' --labeler LABELER --output SHARDS

Posts are lines of .jsonl or .jsonl.gz, or rows of .parquet: {"post_id": str, "image": path relative to the posts file,
"comments": [str], "reactions": {"haha": int, "sorry": int, "angry": int, "wow": int, "love": int}}; image, comments and
reactions may be null. --posts takes one glob or several, separated by commas. Both commands take the same posts: a hash
of the post id decides which posts make clusters and which are trained on.

Keys are changed as in --config.labels.comment_clusters=32. The same command again goes on where it was stopped.
"""

import sys
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from vise_jax import cli, config
from vise_jax.engagement import Labeler, jobs
from vise_jax.errors import UserError
from vise_jax.posts import expand, summary

_CONFIG = cli.define_config()
_POSTS = flags.DEFINE_string("posts", None, "Posts files: a glob, or several separated by commas.")
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write: the labeler (fit) or the shards (run).")
_LABELER = flags.DEFINE_string("labeler", None, "run: the labeler that fit has written.")
_RUNNER = flags.DEFINE_enum("runner", "local", ["local", "beam"], "run: where the work is done.")


def main(words: list[str]) -> None:
    commands = {"fit": _fit, "run": _run}
    if len(words) != 1 or words[0] not in commands:
        raise UserError(f"say what to do, fit or run, instead of {' '.join(words)!r}: see --help for an example.")
    cli.required(_CONFIG)
    config.validate(_CONFIG.value)
    commands[words[0]](expand(cli.required(_POSTS)), Path(cli.required(_OUTPUT)))


def _fit(posts: list[Path], output: Path) -> None:
    if _LABELER.value is not None:
        raise UserError("--labeler is for run; fit writes the labeler to --output.")
    labeler = jobs.fit(posts, _CONFIG.value.labels, output)
    fitted = labeler.fitted
    rows = {
        "posts": f"{fitted['posts']:,}, of them {fitted['cluster_posts']:,} in the cluster split",
        "rejected": summary(fitted["rejected"]),
        "comments": f"{fitted['comments']:,}, {fitted['tokens']:,} tokens, {fitted['comment_dim']} dimensions",
        "comment clusters": _clusters(fitted["comment_clusters"]),
        "posts with reactions": f"{fitted['reactions']:,}",
        "reaction clusters": _clusters(fitted["reaction_clusters"]),
    }
    _print(f"labeler {output}", rows)


def _clusters(fit: dict) -> str:
    if not fit["clusters"]:
        return "none: no post of the cluster split has any"
    return f"{fit['clusters']:,} of {fit['points']:,} points, inertia {fit['inertia']:.4g}, {fit['empty']:,} empty"


def _run(posts: list[Path], output: Path) -> None:
    if _RUNNER.value == "beam":
        raise UserError("--runner beam is not there yet: use --runner local.")
    labeler = Labeler.load(Path(cli.required(_LABELER)))
    was_complete = (output / "manifest.json").exists()
    manifest = jobs.run(posts, labeler, _CONFIG.value.labels, output)
    if was_complete:
        print(f"{output} was complete already.", file=sys.stderr)
    rows = {
        "posts": f"{manifest['posts']:,}",
        "cluster split": f"{manifest['splits']['cluster']:,}",
        "rejected": summary(manifest["rejected"]),
        "mended": summary(manifest["notes"]),
        "examples": f"{manifest['examples']:,} in {len(manifest['shards']):,} shards",
        "with comment labels": f"{manifest['labelled']['comments']:,}",
        "with a reaction label": f"{manifest['labelled']['reactions']:,}",
        "classes": ", ".join(f"{head} {count:,}" for head, count in manifest["classes"].items()),
    }
    _print(f"shards {output}", rows)


def _print(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    cli.run(main, __doc__)
