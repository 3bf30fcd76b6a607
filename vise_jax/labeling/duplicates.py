"""Near-duplicate images among the examples of a labeling job: counted, dropped, or merged into one example.

Groups span all shards, so that they are known when all are written. Shards with a duplicate are then written again,
each by itself: `plan` says how, `apply` does it. The first shards stay until the manifest is written, so that an
interrupted job can make the same plan again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vise_jax import artifact
from vise_jax.data import shards
from vise_jax.data.near_duplicates import representatives
from vise_jax.data.records import read_index
from vise_jax.engagement.labeler import LabeledPost, Labeler
from vise_jax.labeling.input_split import InputSplit, engagement_of, records_of, write_record
from vise_jax.labeling.tables import read_table, select_rows, write_table
from vise_jax.posts import Post

# In the order of preference.
_SPLITS = ("train", "validation")
# Groups and members that the manifest names.
_LARGEST, _MEMBERS = 20, 8


class _Groups(NamedTuple):
    """Near-duplicates among the examples of shards.

    Attributes:
        shards: descriptions of the shards: those of the training split, then those of the validation split.
        starts: int64 [S], number of examples before each shard.
        representatives: int64 [N], the example that each example is a near-duplicate of, or its own number.
    """

    shards: list[Mapping[str, Any]]
    starts: np.ndarray
    representatives: np.ndarray


def describe(output: Path, records: Sequence[Mapping[str, Any]], distance: int) -> dict[str, Any]:
    """Describe the near-duplicates of a labeled directory, for its manifest.

    Args:
        output: the directory of the shards.
        records: of its shards.
        distance: largest number of differing bits of near-duplicates.

    Returns:
        `groups`, number of images of several posts; `examples`, number of examples beside one per group; `left_out`,
        number of examples that were dropped or merged; and `largest`, the largest groups: number of `posts`, and shard
        and record of the first `members`.
    """
    groups = _group([record["shards"] for record in records], output, distance)
    copies = np.concatenate([_copies(table) for table in _tables(groups.shards, output)])
    sizes = np.bincount(groups.representatives, copies, len(copies)).astype(np.int64)
    members = np.bincount(groups.representatives, minlength=len(copies))
    largest = [number for number in np.argsort(-sizes, kind="stable")[:_LARGEST] if sizes[number] > 1]
    return {
        "groups": int((sizes > 1).sum()),
        "examples": int((members[members > 0] - 1).sum()),
        "left_out": int((copies - 1).sum()),
        "largest": [
            {
                "posts": int(sizes[number]),
                "members": [
                    _place(groups, member)
                    for member in np.flatnonzero(groups.representatives == number)[:_MEMBERS].tolist()
                ],
            }
            for number in largest
        ],
    }


def _place(groups: _Groups, example: int) -> dict[str, Any]:
    shard = int(np.searchsorted(groups.starts, example, "right")) - 1
    return {"shard": groups.shards[shard]["name"], "record": example - int(groups.starts[shard])}


def plan(output: Path, records: Sequence[Mapping[str, Any]], labeler: Labeler, distance: int, merge: bool) -> None:
    """Write for each shard with a near-duplicate which of its examples stay and what labels they have.

    Of a group stays the first example of the training split; only groups without one have an example of the validation
    split. A merged example has the comment labels of all, and the reaction label of the sum of their reactions.

    Args:
        output: the directory of the shards.
        records: of its shards, as `label_input_split` wrote them.
        labeler: labels merged reactions.
        distance: largest number of differing bits of near-duplicates.
        merge: merge the labels of a group into the example that stays.
    """
    groups = _group([_first(record) for record in records], output, distance)
    sizes = np.bincount(groups.representatives, minlength=len(groups.representatives))
    together = sizes[groups.representatives] > 1
    members: dict[int, list[Mapping[str, np.ndarray]]] = {}
    for (shard, rows), table in zip(_rows(groups), _tables(groups.shards, output), strict=True):
        if merge and together[rows].any():
            table |= read_table(output / "records" / engagement_of(_stem(shard)), frozenset())
        for row in np.flatnonzero(together[rows]).tolist():
            number = int(groups.representatives[rows][row])
            members.setdefault(number, []).append(select_rows(table, np.arange(len(table["post_ids"])) == row))
    merged = _merge(members, labeler) if merge else {}
    for shard, rows in _rows(groups):
        own = np.arange(rows.start, rows.stop)
        keep = groups.representatives[rows] == own
        path = _plan_of(output, shard)
        if not together[rows].any():
            path.unlink(missing_ok=True)
            continue
        numbers = own[keep & together[rows]].tolist()
        ids = [member["post_ids"] for number in numbers for member in members[number][1:]]
        table = {
            "keep": keep,
            "copies": sizes[own[keep]].astype(np.uint32),
            "duplicate_ids": np.concatenate([np.empty((0, 16), np.uint8), *ids]),
        }
        if merge:
            labels = [merged[number] for number in numbers]
            table |= {
                "comment_counts": np.array([len(label.comment_labels) for label in labels], np.int32),
                "comment_labels": np.array([label for one in labels for label in one.comment_labels], np.int32),
                "comment_weights": np.array([weight for one in labels for weight in one.comment_weights], np.float32),
                "reaction_labels": np.array([label.reaction_label for label in labels], np.int32),
            }
        write_table(path, table)


def _merge(members: Mapping[int, list[Mapping[str, np.ndarray]]], labeler: Labeler) -> dict[int, LabeledPost]:
    """Return the labels of the engagement of each group's posts together."""
    sums = [np.sum([table["reaction_counts"][0] for table in tables], axis=0).tolist() for tables in members.values()]
    reactions = labeler.label([Post("merged", reactions=tuple(counts)) for counts in sums])
    merged = {}
    for (number, tables), reaction in zip(members.items(), reactions, strict=True):
        weights: Counter[int] = Counter()
        for table in tables:
            for label, weight in zip(table["comment_labels"].tolist(), table["comment_weights"].tolist(), strict=True):
                weights[label] += weight
        labels = sorted(weights)
        counted = labeler.labels["label_weights"] == "count"
        merged[number] = LabeledPost(
            labels, [weights[label] if counted else 1.0 for label in labels], reaction.reaction_label
        )
    return merged


def apply(output: Path, input_split: InputSplit, after_post: Callable[[], None] = lambda: None) -> None:
    """Write the shards of an input split as `plan` says, and note it in their records. Done ones are skipped.

    Args:
        output: the directory of the shards.
        input_split: all of its shards have a record.
        after_post: called for each example that stays.
    """
    for record in records_of(input_split, output):
        first = _first(record)
        plans = {split: _plan_of(output, shard) for split, shard in first.items()}
        checks = {split: artifact.file_sha256(path) for split, path in plans.items() if path.exists()}
        if checks == record.get("plans", {}):
            continue
        written = {
            split: _apply(output, shard, plans[split], after_post) if split in checks else shard
            for split, shard in first.items()
        }
        name = next(iter(first.values()))["name"].split(".")[0]
        write_record(
            output / "records" / f"{name}.json",
            {
                **record,
                "before": first,
                "plans": checks,
                "shards": {split: shard for split, shard in written.items() if shard},
            },
        )


def _apply(output: Path, shard: Mapping[str, Any], path: Path, after_post: Callable[[], None]) -> dict[str, Any] | None:
    """Write a shard as planned; return its description, or None if no example stays."""
    table, planned = read_table(output / "records" / shard["table"]), read_table(path, frozenset())
    keep = planned["keep"]
    if not keep.any():
        return None
    table = select_rows(table, keep)
    merged = np.flatnonzero(planned["copies"] > 1)
    relabeled: dict[int, dict[str, Any]] = {}
    if "reaction_labels" in planned:
        ends = np.cumsum(planned["comment_counts"])
        for number, row in enumerate(merged.tolist()):
            of_row = slice(ends[number] - planned["comment_counts"][number], ends[number])
            relabeled[row] = {
                "comments/labels": planned["comment_labels"][of_row].tolist(),
                "comments/weights": planned["comment_weights"][of_row].tolist(),
                "reactions/label": int(planned["reaction_labels"][number]),
            }
        labels_of = np.split(table["comment_labels"], np.cumsum(table["comment_counts"])[:-1])
        for row, labels in relabeled.items():
            labels_of[row] = np.array(labels["comments/labels"], np.int32)
            table["reaction_labels"][row] = labels["reactions/label"]
        table["comment_labels"] = np.concatenate(labels_of)
        table["comment_counts"] = np.array([len(labels) for labels in labels_of], np.int32)
    name = shards.next_revision(shard["name"])
    written = shards.copy_records([(output / shard["name"], keep.tolist())], output / name, relabeled)
    table |= {
        "copies": planned["copies"],
        "duplicate_ids": planned["duplicate_ids"],
        "lengths": read_index(output / name, len(table["post_ids"]))[:, 1].astype(np.uint32),
    }
    table_name = f"{name.removesuffix('.tfrecord')}.safetensors"
    write_table(output / "records" / table_name, table)
    for _ in range(len(table["post_ids"])):
        after_post()
    return {**written, "table": table_name}


def _plan_of(output: Path, shard: Mapping[str, Any]) -> Path:
    return output / "records" / f"{_stem(shard)}.plan.safetensors"


def _stem(shard: Mapping[str, Any]) -> str:
    return shard["name"].removesuffix(".tfrecord")


def _first(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shards of a record as `label_input_split` wrote them."""
    return record.get("before", record["shards"])


def _group(by_split: Sequence[Mapping[str, Any]], output: Path, distance: int) -> _Groups:
    described = [one[split] for split in _SPLITS for one in by_split if split in one]
    hashes = [table["image_hashes"] for table in _tables(described, output)]
    starts = np.cumsum([0, *map(len, hashes)])[:-1]
    return _Groups(described, starts, representatives(np.concatenate([np.empty(0, np.uint64), *hashes]), distance))


def _tables(described: Sequence[Mapping[str, Any]], output: Path) -> Iterator[dict[str, np.ndarray]]:
    return (read_table(output / "records" / shard["table"]) for shard in described)


def _rows(groups: _Groups) -> Iterator[tuple[Mapping[str, Any], slice]]:
    ends = [*groups.starts[1:].tolist(), len(groups.representatives)]
    return ((shard, slice(start, end)) for shard, start, end in zip(groups.shards, groups.starts, ends, strict=True))


def _copies(table: Mapping[str, np.ndarray]) -> np.ndarray:
    return table.get("copies", np.ones(len(table["post_ids"]), np.int64)).astype(np.int64)
