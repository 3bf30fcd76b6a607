r"""Make labels from engagement: fit a labeler on posts, then label posts into shards for scripts/train.py.

    python scripts/label.py fit --config configs/demo.py --posts 'POSTS/*.jsonl' --output LABELER
    python scripts/label.py run --config configs/demo.py --posts 'POSTS/*.jsonl' --labeler LABELER --output SHARDS
    python scripts/label.py relabel --config configs/demo.py --labeler LABELER --output SHARDS --exclude LIST.txt
    python scripts/label.py hash PHOTO.jpg OTHER.jpg >> LIST.txt

Posts are lines of .jsonl, .jsonl.gz or .jsonl.zst, rows of .parquet or samples of .tar (WebDataset): {"post_id": str,
"image": path relative to the posts file, "comments": [str], "reactions": {"haha": int, "sorry": int, "angry": int,
"wow": int, "love": int}}; image, comments and reactions may be null. import_posts.py makes them of exports.

--posts takes one glob or several, separated by commas. Give fit and run the same posts and the same config: a hash of
the post id assigns each post to the cluster split or to the training split.

--exclude names a file with what to leave out, one a line: post ids, and lines of hash, which stand for a photo and its
near-duplicates in any post. relabel takes them out of finished shards.
With --runner beam the work is done by Apache Beam, whose options come last:

    python scripts/label.py run ... --runner beam -- --runner=DirectRunner --direct_running_mode=multi_processing

Keys are changed as in --config.labels.comment_clusters=32. The same command again resumes an interrupted job.
"""

import sys
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from vise_jax import artifact, cli, config, machine
from vise_jax.errors import UserError
from vise_jax.posts import expand, summary

_CONFIG = cli.define_config()
_POSTS = flags.DEFINE_string("posts", None, "Posts files: a glob, or several separated by commas.")
_OUTPUT = flags.DEFINE_string("output", None, "The directory to write: the labeler (fit) or the shards (run).")
_LABELER = flags.DEFINE_string("labeler", None, "run, relabel: the labeler that fit has written.")
_EXCLUDE = flags.DEFINE_string("exclude", None, "A file with post ids and lines of hash to leave out, one a line.")
_WORKERS = flags.DEFINE_integer("workers", machine.available_cpus(), "Processes; 0 = none but this one.", 0)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed", "off", "fit: join other processes for K-means; auto, off or HOST:PORT,PROCESSES,INDEX."
)
_RUNNER = flags.DEFINE_enum("runner", "local", ["local", "beam"], "Where the work is done.")


def main(words: list[str]) -> None:
    commands = {"fit": _fit, "run": _run, "relabel": _relabel}
    command, *beam_options = words or [""]
    if command == "hash":
        return _hash(beam_options)
    if command not in commands:
        raise UserError(
            f"say what to do, fit, run, relabel or hash, instead of {command!r}: see --help for an example."
        )
    if beam_options and _RUNNER.value != "beam":
        raise UserError(f"{beam_options[0]!r} is no flag of this command: give only --runner beam options of its own.")
    if command != "fit" and _DISTRIBUTED.value != "off":
        raise UserError("--distributed is for fit; to label on several machines, use --runner beam.")
    config.validate(cli.required(_CONFIG), config.base)
    commands[command](cli.location(_OUTPUT), beam_options if _RUNNER.value == "beam" else None)


# The jobs are imported where they start: JAX takes seconds that --help and wrong flags should not.
def _fit(output: Path, beam_options: list[str] | None) -> None:
    from vise_jax.labeling.fit import fit

    posts = expand(cli.required(_POSTS))
    if _LABELER.value is not None:
        raise UserError("--labeler is for run and relabel; fit writes the labeler to --output.")
    labeler = fit(
        posts,
        _CONFIG.value.labels,
        output,
        exclude=_exclude(),
        workers=_WORKERS.value,
        beam_options=beam_options,
        distributed=_DISTRIBUTED.value,
    )
    fitted = labeler.fitted
    rows = {
        "posts": f"{fitted['posts']:,}, of them {fitted['cluster_posts']:,} in the cluster split",
        "rejected": summary(fitted["rejected"]),
        "mended": summary(fitted["notes"]),
        "excluded": f"{fitted['excluded']:,}; {fitted['unmatched']:,} ids match no post",
        "comments": f"{fitted['comments']:,}, {fitted['tokens']:,} tokens, {fitted['comment_dim']} dimensions",
        "tokens covered": f"{labeler.comments.coverage:.1%}" if labeler.comments else "",
        "comment clusters": _clusters(fitted["comment_clusters"]),
        **({"languages": spoken} if (spoken := _languages(fitted["comment_clusters"])) else {}),
        "posts with reactions": f"{fitted['reactions']:,}",
        "reaction clusters": _clusters(fitted["reaction_clusters"]),
        "hashes of post ids": _salted(),
    }
    _print(f"labeler {output}", rows)


def _hash(images: list[str]) -> None:
    from vise_jax.engagement.hashing import image_line
    from vise_jax.labeling.images import read_image
    from vise_jax.posts import BadPost, Post

    if not images or not all(images):
        raise UserError("hash has no PHOTO, or an empty one: name one or more image files.")
    labels = config.base().labels
    max_bytes = labels.max_image_bytes
    for name in images:
        try:
            path = artifact.location(name)
            with artifact.explained(path):
                encoded = artifact.first_bytes(path, max_bytes + 1)
                _, image_hash = read_image(Post("", image_bytes=encoded), labels.max_image_pixels, max_bytes=max_bytes)
        except OSError as error:
            raise UserError(f"{name} can't be read ({error.strerror}): check the file.") from error
        except BadPost as bad:
            raise UserError(f"{name} has no hash ({bad.reason}): give an image file that can be decoded.") from bad
        print(image_line(image_hash))


def _exclude() -> Path | None:
    return artifact.location(_EXCLUDE.value).absolute() if _EXCLUDE.value else None


def _salted() -> str:
    file = _CONFIG.value.labels.salt_file
    return f"salted with {file}" if file else "salted with the seed: anyone can repeat them (see labels.salt_file)"


def _clusters(fit: dict) -> str:
    if not fit["clusters"]:
        return "none: no post of the cluster split has any"
    suppressed = f", {fit['suppressed']:,} suppressed" if fit.get("suppressed") else ""
    clusters = f"{fit['clusters']:,} of {fit['points']:,} points, inertia {fit['inertia']:.4g}, {fit['empty']:,} empty"
    return clusters + suppressed


def _languages(fit: dict) -> str:
    by_clusters = sorted(fit.get("languages", {}).items(), key=lambda item: -item[1]["clusters"])
    return ", ".join(f"{name or 'other'} {one['clusters']:,}" for name, one in by_clusters)


def _run(output: Path, beam_options: list[str] | None) -> None:
    from vise_jax.labeling.label import label

    posts = expand(cli.required(_POSTS))
    was_complete = (output / "manifest.json").exists()
    manifest = label(
        posts,
        cli.location(_LABELER),
        _CONFIG.value.labels,
        output,
        exclude=_exclude(),
        workers=_WORKERS.value,
        beam_options=beam_options,
    )
    if was_complete:
        print(f"{output} was complete already.", file=sys.stderr)
    _print_manifest(output, manifest)


def _relabel(output: Path, beam_options: list[str] | None) -> None:
    from vise_jax.labeling.delete import delete

    if _POSTS.value is not None or beam_options is not None:
        raise UserError("relabel reads the shards alone: leave out --posts and --runner beam.")
    exclude = cli.location(_EXCLUDE)
    manifest = delete(output, _CONFIG.value.labels, cli.location(_LABELER), exclude)
    _print_manifest(output, manifest)


def _print_manifest(output: Path, manifest: dict) -> None:
    validation = manifest["validation"]
    rows = {
        "posts": f"{manifest['posts']:,}",
        "cluster split": f"{manifest['splits']['cluster']:,}",
        "rejected": summary(manifest["rejected"]),
        "mended": summary(manifest["notes"]),
        "excluded, deleted": f"{manifest['excluded'] + manifest['excluded_images']:,}, {manifest['deleted']:,}",
        "excluded, but in no post": f"{manifest['unmatched']:,}",
        "near-duplicate images": _duplicates(manifest["duplicates"]),
        "examples": f"{manifest['examples']:,} in {len(manifest['shards']):,} shards",
        "validation examples": f"{validation['examples']:,} in {len(validation['shards']):,} shards",
        "with comment labels": f"{manifest['labeled']['comments']:,}",
        "with a reaction label": f"{manifest['labeled']['reactions']:,}",
        "classes": ", ".join(f"{head} {count:,}" for head, count in manifest["classes"].items()),
    }
    _print(f"shards {output}", rows)


def _duplicates(counted: dict) -> str:
    more = counted["examples"] + counted["left_out"]
    what = "left out" if counted["left_out"] else "kept (see labels.duplicates)"
    return f"{more:,} beside the first of {counted['groups']:,} images, {what}" if more else "none"


def _print(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


if __name__ == "__main__":
    cli.run(main, __doc__)
