r"""Import the posts of an export into posts files that `label.py` reads.

Comments are joined to their posts on disk, whatever the number of files. Users' names and ids are not copied. Run the
same command again after an interruption: it resumes. What was left out is counted in OUTPUT/import.json, by reason.

    crowdtangle  CrowdTangle's CSV export; the message is the only comment
    reddit       dumps of submissions and comments, RS_*.zst and RC_*.zst
    fediverse    statuses of Mastodon or notes of Misskey, as JSON lines
    bluesky      posts of app.bsky.feed or Jetstream's events, as JSON lines
    table        any CSV, JSON lines or Parquet, whose fields --map names

Images are found by the name of the post, the attachment or, on Bluesky, the CID: IMAGES/NAME.jpg, .png, .webp or .gif.

Example:
    python scripts/import_posts.py --from reddit --input 'dumps/R[SC]_2020-01.zst' --images archive/images \
        --output archive
    python scripts/import_posts.py --from table --input export.csv --output archive \
        --map post_id=id,image=file,comments=text,reactions.love=hearts,reactions.haha=laughs
    python scripts/label.py fit --config mine.py --posts 'archive/*.jsonl' --output labeler

docs/importing.md has a config for your own posts.
"""

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vise_jax import cli
from vise_jax.errors import UserError
from vise_jax.posts import expand, summary
from vise_jax.progress import Progress

_KINDS = ("crowdtangle", "reddit", "fediverse", "bluesky", "table")
# Buttons in the printed table, the most used ones.
_BUTTONS = 20
_FROM = flags.DEFINE_enum("from", None, _KINDS, "What wrote the export.")
_INPUT = flags.DEFINE_string("input", None, "The export's files: a path, a glob, or several, joined by commas.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the posts files. It holds the images.")
_IMAGES = flags.DEFINE_string("images", None, "Directory of the images, inside OUTPUT; by default OUTPUT itself.")
_MAP = flags.DEFINE_list(
    "map",
    None,
    "Fields of a post and where a table has them, e.g. post_id=id,image=file,comments=replies[].text,reactions.love=n.",
)


def main(words: list[str]) -> None:
    """Import, and print what was found."""
    cli.no_words(words)
    source, files, output = cli.required(_FROM), cli.required(_INPUT), cli.location(_OUTPUT)
    if (source == "table") != bool(_MAP.value):
        raise UserError("--map belongs to --from table: it says where a table has the fields of a post.")
    try:
        from vise_jax.importing import importer, kinds
    except ImportError as error:
        raise UserError("Importing needs DuckDB: install it with `pip install 'vise-jax[import]'`.") from error

    export = kinds.of_table(_fields(_MAP.value)) if _MAP.value else kinds.KINDS[source]
    with Progress("importing", None, "records") as progress:
        about = importer.import_posts(
            expand(files),
            export,
            output,
            images=cli.location(_IMAGES) if _IMAGES.value else None,
            made_from=_MAP.value,
            after_record=progress.advance,
        )
    table = Table("imported", "number")
    table.columns[1].justify = "right"
    for name, count in about["counts"].items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    for name, count in sorted(about["buttons"].items(), key=lambda item: -item[1])[:_BUTTONS]:
        table.add_row(Text(f"clicks on {name}"), f"{count:,}")
    Console().print(table)
    print(f"{output}: import.json has all counts; left out: {summary(about['rejected'])}")


def _fields(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UserError(f"--map has {pair!r}: write FIELD=PLACE, joined by commas.")
    return dict(pair.split("=", 1) for pair in pairs)


if __name__ == "__main__":
    cli.run(main, __doc__)
