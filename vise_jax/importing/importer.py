"""Import posts: read rows, join them out of core, and write posts files.

Rows go into a DuckDB database beside the output, a batch per transaction with the place where reading resumes. Sorted
by post, they are merged to posts and written to files of 50,000. Memory is bounded by DuckDB's limit, a batch of rows
and one post.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb
import pyarrow as pa

from vise_jax import artifact
from vise_jax.errors import Interrupted, UserError
from vise_jax.importing.kinds import Kind
from vise_jax.importing.records import records
from vise_jax.importing.rows import Clicks, Comment, Photo, Row
from vise_jax.posts import BadPost, Buttons, parse
from vise_jax.posts.readers import explained
from vise_jax.posts.reject_log import summary
from vise_jax.posts.schema import without_surrogates

DESCRIPTION = "import.json"
_WORK = ".import"
_LOCK = ".import.lock"
_MEMORY = "512MB"
# Rows and records of a transaction, and rows that are read at a time.
_BATCH = 50_000
_POSTS_PER_FILE = 50_000
_POSTS_FILE = r"\d{5}\.jsonl"
# Comments of a post beyond these, the first ones, are left out; `labels.max_comments` samples fewer.
_MAX_COMMENTS = 10_000
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
# Beside the tables of rows.
_SCHEMA = """
CREATE TABLE progress (file VARCHAR, records BIGINT, finished BOOLEAN);
CREATE TABLE written (number BIGINT, last VARCHAR, counts VARCHAR);
"""
# An answer to a comment becomes one to what that comment answers: in each round the way to the post is half as long.
_SHORTEN = """
UPDATE comments SET post_id = answered.post_id
FROM (SELECT own_id, min(post_id) AS post_id FROM comments WHERE own_id <> '' GROUP BY own_id) AS answered
WHERE comments.post_id = answered.own_id AND comments.post_id NOT IN (SELECT post_id FROM photos)
"""
# Enough for threads of 65,000 answers. Comments that answer each other would take rounds without an end.
_ROUNDS = 16


@dataclass(frozen=True)
class _Rejected:
    """A record that is left out, by its place and not by its text."""

    file: str
    line: int
    reason: str


_TABLES: dict[type, tuple[str, pa.Schema]] = {
    Photo: (
        "photos",
        pa.schema(
            [
                ("post_id", pa.string()),
                ("image", pa.string()),
                ("names", pa.list_(pa.string())),
                ("sensitive", pa.bool_()),
            ]
        ),
    ),
    Comment: ("comments", pa.schema([(name, pa.string()) for name in ("post_id", "key", "text", "own_id")])),
    Clicks: (
        "clicks",
        pa.schema([("post_id", pa.string()), ("button", pa.string()), ("key", pa.string()), ("count", pa.int64())]),
    ),
    _Rejected: ("rejected", pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string())])),
}


def import_posts(
    paths: Sequence[Path],
    export: Kind,
    output: Path,
    *,
    images: Path | None = None,
    made_from: Any = None,
    after_record: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Import posts files from an export, resuming an interrupted import.

    Args:
        paths: files of the export, in any order.
        export: how their records are read.
        output: directory of the posts files, `00000.jsonl` and so on. Images are named relative to it.
        images: directory of the images, in `output` or below it; None = `output`. An image that no record names by path
            is looked for by name, with one of the usual endings.
        made_from: whatever else decides the posts, any JSON.
        after_record: called for each record read.

    Returns:
        The description that is written to `import.json`: counts of posts, comments and buttons, and rejected records by
        reason.

    Raises:
        UserError: a file that can't be read or lacks a column, `images` outside `output`, an output directory of
            another import, or one in use.
    """
    output, directory = output.absolute(), (images or output).absolute()
    if directory != output and output not in directory.parents:
        raise UserError(
            f"The images {images} are not in {output}: posts name their images relative to their own file, so give an "
            "output directory that holds them."
        )
    of_images, files = PurePosixPath(*directory.parts[len(output.parts) :]), []
    for path in paths:
        if path.absolute().parent == output and re.fullmatch(_POSTS_FILE, path.name):
            raise UserError(f"{path} has the name of a posts file of {output}: name another output directory.")
        with explained(path):
            files.append([path.name, *artifact.version(path)])
    key = artifact.fingerprint([sorted(files), export.title, made_from, str(of_images)])
    artifact.make_directory(output)
    with artifact.lock(output / _LOCK, f"{output} is being written by another import: wait, or name another one."):
        work = artifact.scratch(output, "import") if artifact.is_remote(output) else output / _WORK
        if artifact.is_file(output / DESCRIPTION):
            again = "delete it, and run the same command again"
            done = artifact.parse_json((output / DESCRIPTION).read_bytes(), output / DESCRIPTION, again)
            if not isinstance(done, dict) or done.get("import") != key:
                raise UserError(f"{output} holds the posts of another import: name a new directory.")
            shutil.rmtree(work, ignore_errors=True)
            return done
        with _database(work, output, key) as database:
            # Not keyed by path: the same directory can be spelled in two ways.
            seen: Counter[str] = Counter()
            for path, of_file in sorted(zip(paths, files, strict=True), key=lambda pair: str(pair[0].absolute())):
                name = " ".join(map(str, of_file))
                seen[name] += 1
                _read(database, path, f"{name} {seen[name]}", export, after_record)
            _join_threads(database)
            about = _write(database, output, _Images(output, of_images))
        if not about["counts"]:
            shutil.rmtree(work)
            raise UserError(
                f"No post was found, and {sum(about['rejected'].values()):,} records were rejected "
                f"({summary(about['rejected'])}): check --from and --input."
            )
        about = {"import": key, "source": export.title, "files": sorted(path.name for path in paths), **about}
        artifact.write_json(output / DESCRIPTION, about)
        shutil.rmtree(work)
        return artifact.from_json((output / DESCRIPTION).read_bytes())


@contextlib.contextmanager
def _database(work: Path, output: Path, key: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the database of an import; it holds people's words, so that only the owner can read it."""
    marker = work / "import"
    if work.is_symlink():
        raise UserError(f"{work} is a link, through which other files would be written: delete it.")
    artifact.refuse_links(work)
    if work.exists() and (not marker.exists() or marker.read_text("utf-8") != key):
        if marker.exists():
            raise UserError(f"{output} holds a begun import of other files: name a new directory, or delete {work}.")
        shutil.rmtree(work)
    settings: dict[str, Any] = {"memory_limit": _MEMORY, "temp_directory": str(work / "spilled"), "threads": 2}
    try:
        if not work.exists():
            work.mkdir(mode=0o700)
            with duckdb.connect(work / "rows.duckdb") as fresh:
                fresh.execute(_SCHEMA)
                for name, schema in _TABLES.values():
                    _from_arrow(fresh, f"CREATE TABLE {name} AS", schema.empty_table())
            artifact.write_text(marker, key)
        with duckdb.connect(work / "rows.duckdb", config=settings) as database:
            try:
                yield database
            except UserError:
                # Nothing is there to resume: another command may take its place.
                if not database.execute("SELECT * FROM progress").fetchone():
                    shutil.rmtree(work)
                raise
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException) as error:
        raise Interrupted(
            f"The rows in {work} can't be written ({str(error).splitlines()[0][:200]}): free some space on its disk, "
            "and run the same command again."
        ) from error


def _read(
    database: duckdb.DuckDBPyConnection, path: Path, name: str, export: Kind, after_record: Callable[[], None]
) -> None:
    """Add the rows of a file from where reading stopped; `name` identifies the file in the table `progress`."""
    state = database.execute("SELECT max(records), bool_or(finished) FROM progress WHERE file = ?", [name])
    done, finished = state.fetchone() or (None, None)
    if finished:
        return
    done, size = done or 0, 0
    rows: dict[type, list[Row | _Rejected]] = defaultdict(list)
    for line, record in itertools.islice(records(path, export.columns), done, None):
        after_record()
        try:
            if isinstance(record, BadPost):
                raise record
            if not isinstance(record, Mapping):
                raise BadPost("no_object")
            new: Sequence[Row | _Rejected] = export.read(record)
        except BadPost as bad:
            new = [_Rejected(path.name, line, bad.reason)]
        for row in new:
            rows[type(row)].append(row)
        done, size = done + 1, size + 1 + len(new)
        if size >= _BATCH:
            _add(database, rows, (name, done, False))
            rows.clear()
            size = 0
    _add(database, rows, (name, done, True))


def _add(
    database: duckdb.DuckDBPyConnection,
    rows: Mapping[type, Sequence[Row | _Rejected]],
    progress: tuple[str, int, bool],
) -> None:
    database.begin()
    for of_kind, chosen in rows.items():
        name, schema = _TABLES[of_kind]
        columns = [_array([getattr(row, field.name) for row in chosen], field.type) for field in schema]
        _from_arrow(database, f"INSERT INTO {name}", pa.Table.from_arrays(columns, schema=schema))
    database.execute("INSERT INTO progress VALUES (?, ?, ?)", progress)
    database.commit()


def _from_arrow(database: duckdb.DuckDBPyConnection, statement: str, batch: pa.Table) -> None:
    """Execute a statement that takes the rows of `batch`."""
    database.register("batch", batch)
    database.execute(f"{statement} SELECT * FROM batch")
    database.unregister("batch")


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return a column. Lone surrogates can't be stored: they become U+FFFD."""
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([_storable(value) for value in values], kind)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    return [without_surrogates(one) for one in value] if isinstance(value, tuple) else value


def _join_threads(database: duckdb.DuckDBPyConnection) -> None:
    """Make the answers to comments comments of the photo above them."""
    for _ in range(_ROUNDS):
        moved = database.execute(_SHORTEN).fetchone()
        if moved is None or not moved[0]:
            return


def _write(database: duckdb.DuckDBPyConnection, output: Path, images: "_Images") -> dict[str, Any]:
    """Write the posts files that are missing; return the counts of all."""
    state = database.execute("SELECT number, last FROM written ORDER BY number DESC LIMIT 1").fetchone()
    number, last = state if state else (-1, "")
    posts = _posts(database, last, images)
    while first := next(posts, None):
        number += 1
        counts: Counter[str] = Counter()
        with artifact.atomic_file(output / f"{number:05d}.jsonl") as file:
            for post, of_post in itertools.islice(itertools.chain([first], posts), _POSTS_PER_FILE):
                counts.update(of_post)
                last = post.get("post_id", last)
                if "reject" not in post:
                    file.write(f"{json.dumps(post, ensure_ascii=False)}\n".encode())
        # A cursor of its own: the streams of posts are open.
        with database.cursor() as cursor:
            cursor.execute("INSERT INTO written VALUES (?, ?, ?)", [number, last, json.dumps(counts)])
    _remove_later(output, number)
    total: Counter[str] = Counter()
    for (text,) in database.execute("SELECT counts FROM written").fetchall():
        total.update(json.loads(text))
    reasons = dict(database.execute("SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY reason").fetchall())
    reasons |= {name.removeprefix("rejected "): total.pop(name) for name in [*total] if name.startswith("rejected ")}
    named = database.execute(
        "SELECT file, line, reason FROM (SELECT *, row_number() OVER (PARTITION BY reason ORDER BY file, line) AS place"
        " FROM rejected) WHERE place <= 100 ORDER BY reason, file, line"
    ).fetchall()
    return {
        "counts": {name: count for name, count in sorted(total.items()) if not name.startswith("button ")},
        "buttons": {
            name.removeprefix("button "): count for name, count in total.most_common() if name.startswith("button ")
        },
        "rejected": reasons,
        "rejected_records": [dict(zip(("file", "line", "reason"), row, strict=True)) for row in named],
    }


def _remove_later(output: Path, number: int) -> None:
    """Remove posts files after the last one: an import of more posts that was given up has left them."""
    for name in artifact.entries(output):
        if re.fullmatch(_POSTS_FILE, name) and int(name.removesuffix(".jsonl")) > number:
            with artifact.explained(output / name, "removed"):
                (output / name).unlink()


def _posts(
    database: duckdb.DuckDBPyConnection, after: str, images: "_Images"
) -> Iterator[tuple[dict[str, Any], Counter[str]]]:
    """Yield posts in the order of their ids, after the id `after`, each with what there is to count.

    A post that breaks the schema of `vise_jax.posts` is {"post_id", "reject"}.
    """
    of_photos = "SELECT post_id FROM photos"
    photos = _stream(database, "SELECT * FROM photos WHERE post_id > ? ORDER BY ALL", after)
    comments = _groups(
        database,
        f"SELECT post_id, key, text FROM comments WHERE post_id > ? AND post_id IN ({of_photos}) "
        "ORDER BY post_id, key, text",
        after,
    )
    clicks = _groups(
        database,
        f"SELECT * FROM clicks WHERE post_id > ? AND post_id IN ({of_photos}) "
        "ORDER BY post_id, button, key, count DESC",
        after,
    )
    for post_id, rows in itertools.groupby(photos, key=lambda row: row[0]):
        image, names, sensitive = "", (), False
        counts = Counter({"posts": 1, "posts_twice": -1})
        for _, one, names_of_one, hidden in rows:
            # What a single row says counts: an image, its names, and a warning.
            image, names, sensitive = image or one, names or names_of_one, sensitive or hidden
            counts["posts_twice"] += 1
        # Keys are dict keys: the first of equal ones, in the order of the stream.
        texts: dict[str, str] = {}
        for _, key, text in comments(post_id):
            if key in texts:
                counts["comments_twice"] += 1
            elif len(texts) < _MAX_COMMENTS:
                texts[key] = text
            else:
                counts["comments_over_limit"] += 1
        largest: dict[tuple[str, str], int] = {}
        for _, button, key, count in clicks(post_id):
            largest.setdefault((button, key), count)
        reactions: Counter[str] = Counter()
        for (button, _), count in largest.items():
            reactions[button] += count
        found = images.find(image, names)
        post: dict[str, Any] = {
            "post_id": post_id,
            "image": found,
            "comments": list(texts.values()),
            "reactions": dict(reactions) or None,
        }
        if sensitive:
            post["sensitive"] = True
        try:
            parse(post, buttons=Buttons(others="ignore"))
        except BadPost as bad:
            yield {"post_id": post_id, "reject": bad.reason}, Counter({f"rejected {bad.reason}": 1})
            continue
        counts.update({"comments": len(texts), "images_missing": found is None, "sensitive": bool(sensitive)})
        counts.update({f"button {button}": count for button, count in reactions.items()})
        yield post, counts


def _stream(database: duckdb.DuckDBPyConnection, query: str, after: str) -> Iterator[tuple]:
    with database.cursor() as cursor:
        result = cursor.execute(query, [after])
        while rows := result.fetchmany(_BATCH):
            yield from rows


def _groups(database: duckdb.DuckDBPyConnection, query: str, after: str) -> Callable[[str], Iterator[tuple]]:
    """Return a function that takes post ids in ascending order and gives the rows of each."""
    stream = _stream(database, query, after)
    ahead: list[tuple] = []

    def rows_of(post_id: str) -> Iterator[tuple]:
        for row in itertools.chain([ahead.pop()] if ahead else [], stream):
            if row[0] == post_id:
                yield row
            elif row[0] > post_id:
                ahead.append(row)
                return

    return rows_of


class _Images:
    """The images of the posts.

    Args:
        output: directory of the posts files.
        directory: of the images, relative to it.
    """

    def __init__(self, output: Path, directory: PurePosixPath):
        self._output, self._directory = output, directory
        # In an object store a listing costs less than a request for each image.
        self._listed = set(artifact.tree(output / str(directory))) if artifact.is_remote(output) else None

    def find(self, image: str, names: Sequence[str]) -> str | None:
        """Return the path of an image relative to the posts file; None where there is none.

        Args:
            image: its path relative to the directory of the images, if a record has one.
            names: names that it may have, without the ending.
        """
        if image:
            path = PurePosixPath(image)
            is_inside = not path.is_absolute() and ".." not in path.parts
            return str(self._directory / path) if is_inside and self._exists(str(path)) else None
        for name in names:
            if name and "/" not in name:
                for ending in _ENDINGS:
                    if self._exists(f"{name}{ending}"):
                        return str(self._directory / f"{name}{ending}")
        return None

    def _exists(self, name: str) -> bool:
        if self._listed is not None:
            return name in self._listed
        try:
            return os.path.isfile(f"{self._output}/{self._directory}/{name}")
        except ValueError:  # a NUL in it
            return False
