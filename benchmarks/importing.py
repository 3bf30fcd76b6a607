"""Time the import of posts of each kind, and measure its memory, on simulated exports in the sources' layout.

    python benchmarks/importing.py
    python benchmarks/importing.py --kinds reddit --comments 2000000

Each import runs in a process of its own, so that the peak memory is its own. Beside it, a process only reads and
decodes the same records: the ratio is its seconds divided by those of the import, which joins and writes. A third one
fits a labeler on the posts: clusters of their comments, and of the buttons that the export has. The last line is one
JSON object.
"""

import csv
import io
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
import zstandard
from absl import flags
from measuring import peak_bytes, ratio

from vise_jax import cli, config
from vise_jax.importing import importer, kinds, records

QUICK = flags.DEFINE_bool("quick", False, "Few posts: a smoke test.")
KINDS = flags.DEFINE_list("kinds", [*kinds.KINDS, "table"], "Which kinds.")
POSTS = flags.DEFINE_integer("posts", None, "Posts; by default 100,000.", 1)
COMMENTS = flags.DEFINE_integer("comments", None, "Comments of all posts; by default 2,000,000.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Times that each is measured.", 1)
CHILD = flags.DEFINE_list("child", None, "For the benchmark itself: what to do, kind, file, output.")
_MAP = {"post_id": "id", "comments": "texts", "reactions.love": "hearts"}
_BAD = 0.01


def main(words: list[str]) -> None:
    cli.no_words(words)
    if CHILD.value:
        child(*CHILD.value)
        return
    posts = POSTS.value or (300 if QUICK.value else 100_000)
    comments = COMMENTS.value or (1_000 if QUICK.value else 2_000_000)
    ratios, measured = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for kind in KINDS.value:
            path = Path(name) / (f"{kind}.csv" if kind in ("crowdtangle", "table") else f"{kind}.zst")
            write(kind, posts, comments, path)
            seconds: dict[str, list[float]] = {"decode": [], "import": []}
            for round_number in range(ROUNDS.value):
                for what in seconds:
                    about = run(what, kind, path, Path(name) / f"{kind}{round_number}")
                    seconds[what].append(about["seconds"])
            ratios[f"decoding alone, {kind}"] = ratio(np.array(seconds["decode"]), np.array(seconds["import"]))
            rate = about["records"] / float(np.median(seconds["import"]))
            fitted = run("fit", kind, path, Path(name) / f"{kind}0")
            measured[kind] = {**about, "records_per_second": round(rate), "fitted": fitted}
            print(
                f"{kind}: {about['records']:,} records, {rate:,.0f} records/s, {about['posts']:,} posts, "
                f"{about['peak_bytes'] / 2**20:,.0f} MiB at most, rejected: {about['rejected']}; "
                f"{fitted['comment_clusters']:,} clusters of {fitted['comments']:,} comments, "
                f"{fitted['reaction_clusters']:,} of {fitted['reactions']:,} profiles of "
                f"{len(fitted['buttons'])} buttons",
                flush=True,
            )
    print(json.dumps({"benchmark": "importing", "device": "cpu", "ratios": ratios, "measured": measured}))


def run(what: str, kind: str, path: Path, output: Path) -> dict[str, Any]:
    """Run `child` in a process of its own, and return what it has printed."""
    command = [sys.executable, __file__, f"--child={what},{kind},{path},{output}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def child(what: str, kind: str, path: str, output: str) -> None:
    """Import, only decode, or fit a labeler on what was imported, and print what it took."""
    if what == "fit":
        print(json.dumps(fit(Path(output))))
        return
    began, counted = time.perf_counter(), [0]

    def count() -> None:
        counted[0] += 1

    export = kinds.of_table(_MAP) if kind == "table" else kinds.KINDS[kind]
    about: dict[str, Any] = {"counts": {}, "rejected": {}}
    if what == "decode":
        deque(records.records(Path(path), export.columns), maxlen=0)
    else:
        about = importer.import_posts([Path(path)], export, Path(output), after_record=count)
    result = {
        "seconds": time.perf_counter() - began,
        "records": counted[0],
        "posts": about["counts"].get("posts", 0),
        "rejected": about["rejected"],
        "peak_bytes": peak_bytes(),
    }
    print(json.dumps(result))


def fit(directory: Path) -> dict[str, Any]:
    """Fit a labeler on imported posts, with all buttons that they have; return what `label.py fit` shows of it."""
    from vise_jax.labeling.fit import fit

    buttons = list(json.loads((directory / importer.DESCRIPTION).read_text())["buttons"])
    labels = config.base().labels
    # A single button has one profile.
    labels.update(comment_clusters=100, reaction_clusters=10, cluster_fraction=0.5, allow_fewer_clusters=True)
    labels.update(reactions=tuple(buttons) or labels.reactions)
    fitted = fit(sorted(directory.glob("*.jsonl")), labels, directory / "labeler", workers=2).fitted
    return {
        "buttons": buttons,
        **{name: fitted[name] for name in ("posts", "comments", "reactions", "rejected")},
        **{name: fitted[name]["clusters"] for name in ("comment_clusters", "reaction_clusters")},
    }


def write(kind: str, posts: int, comments: int, path: Path) -> None:
    """Write a simulated export: made-up words, one record in a hundred broken."""
    draw = random.Random(0)
    simulated = SAMPLES[kind](draw, posts, comments)
    if path.suffix == ".csv":
        text = io.StringIO()
        first = next(simulated)
        writer = csv.DictWriter(text, list(first))
        writer.writeheader()
        writer.writerows([first, *simulated])
        path.write_text(text.getvalue())
        return
    with open(path, "wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        for record in simulated:
            line = json.dumps(record)
            packed.write((line[:-1] if draw.random() < _BAD else line).encode() + b"\n")


def words(draw: random.Random) -> str:
    return " ".join(f"word{int(20_000 * draw.random() ** 3)}" for _ in range(draw.randint(3, 20)))


def of_crowdtangle(draw: random.Random, posts: int, comments: int) -> Iterator[dict[str, Any]]:
    for number in range(posts):
        clicks = {
            name: f"{draw.randint(0, 5000):,}" for name in ("Likes", "Love", "Wow", "Haha", "Sad", "Angry", "Care")
        }
        address = f"https://www.facebook.com/1000/posts/{10**9 + number}" if draw.random() > _BAD else ""
        yield {"Page Name": "page", "Type": "Photo", **clicks, "URL": address, "Message": words(draw)}


def of_reddit(draw: random.Random, posts: int, comments: int) -> Iterator[dict[str, Any]]:
    about = {"subreddit": "pics", "score": 1, "edited": False, "permalink": "/r/pics/", "gilded": 0}
    for number in range(posts):
        yield {
            "id": f"p{number}",
            "author": "a",
            "url": f"https://i.example/{number}.jpg",
            "title": words(draw),
            **about,
        }
    for number in range(comments):
        parent, body = f"t3_p{draw.randrange(2 * posts)}", "[deleted]" if draw.random() < 0.05 else words(draw)
        yield {
            "id": f"c{number}",
            "link_id": parent,
            "author": "b",
            "body": body,
            "created_utc": 1_577_836_800,
            **about,
        }


def of_fediverse(draw: random.Random, posts: int, comments: int) -> Iterator[dict[str, Any]]:
    about = {"created_at": "2024-01-01T00:00:00Z", "account": {"id": "1", "acct": "a"}, "visibility": "public"}
    for number in range(posts):
        media = [{"id": f"m{number}", "type": "image"}]
        reactions = [{"name": "🔥", "count": 2}]
        yield {"id": f"{number}", "media_attachments": media, "favourites_count": 3, "reactions": reactions, **about}
        reply = {"id": f"r{number}", "in_reply_to_id": f"{draw.randrange(posts)}", "content": f"<p>{words(draw)}</p>"}
        yield {**reply, "media_attachments": [], **about}


def of_bluesky(draw: random.Random, posts: int, comments: int) -> Iterator[dict[str, Any]]:
    for number in range(posts):
        uri = f"at://did:plc:a/app.bsky.feed.post/{number}"
        embed = {"images": [{"image": {"ref": {"$link": f"bafk{number}"}}}]}
        yield {"uri": uri, "likeCount": 5, "record": {"text": words(draw), "createdAt": "2024-01-01", "embed": embed}}
        root = f"at://did:plc:a/app.bsky.feed.post/{draw.randrange(posts)}"
        answer = {"text": words(draw), "createdAt": "2024-01-02", "reply": {"root": {"uri": root}}}
        yield {"uri": f"{uri}r", "likeCount": 0, "record": answer}


def of_table(draw: random.Random, posts: int, comments: int) -> Iterator[dict[str, Any]]:
    for number in range(posts):
        yield {"id": number, "texts": words(draw), "hearts": "many" if draw.random() < _BAD else draw.randint(0, 99)}


SAMPLES = {
    "crowdtangle": of_crowdtangle,
    "reddit": of_reddit,
    "fediverse": of_fediverse,
    "bluesky": of_bluesky,
    "table": of_table,
}


if __name__ == "__main__":
    cli.run(main, __doc__)
