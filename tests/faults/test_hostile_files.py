"""Every reader of foreign files: a mutated file is read, counted as a reject, or refused in a sentence."""

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
import mutations
from hostile_files import READERS, Fuzzed, Reader


def marked(name: str, reader: str) -> Any:
    """The parameter `name` of a test of a reader; one of a slow reader is for `make test-all`."""
    return pytest.param(name, marks=[pytest.mark.slow] if READERS[reader].is_slow else [])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Fuzzed]]:
    made: dict[str, Fuzzed] = {}

    def make(name: str) -> Fuzzed:
        if name == "weights":
            pytest.importorskip("torch")
        if name not in made:
            made[name] = Fuzzed(READERS[name], tmp_path_factory.mktemp("fuzzed"))
        return made[name]

    return make


# The long form is benchmarks/fuzz.py.
@pytest.mark.parametrize("name", [marked(name, name) for name in READERS])
def test_mutated_files(fuzzed: Callable[[str], Fuzzed], name: str) -> None:
    reader = fuzzed(name)
    examples = 15 if READERS[name].is_slow else 100

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=HealthCheck)
    @given(st.randoms(use_true_random=False))
    def check(draw: random.Random) -> None:
        finding = reader.check(*reader.mutated(draw))
        assert finding is None, finding.trace or finding.what

    check()


def replaced(old: str, new: str) -> Callable[[bytes], bytes]:
    def replace(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return replace


DEEP = "[" * 100_000
# What mutations have found: reader, file, and the change.
FINDINGS = {
    "deep nesting": ("dataset, memes", "train.jsonl", replaced("{", DEEP)),
    "an unhashable label": ("dataset, memes", "train.jsonl", replaced('"label": 0', '"label": {}')),
    "a name that is no UTF-8": ("dataset, memes", "dev.jsonl", replaced("img/4.png", r"\ud800.png")),
    "a member without a name": (
        "dataset, zip",
        "set.zip",
        lambda content: content.replace(b"set/train/a/0.jpg", b"./" * 8 + b"."),
    ),
    "a line feed in a name": (
        "dataset, zip",
        "set.zip",
        lambda content: content.replace(b"set/train/a/0.jpg", b"a" * 16 + b"\n"),
    ),
    "a huge number of a token": ("static embeddings", "tokenizer.json", replaced('"w4":7', '"w4":2147483647')),
    "a token that is unknown": (
        "static embeddings",
        "tokenizer.json",
        replaced('"unk_token":"<unk>"', '"unk_token":"?"'),
    ),
    "a column name that is no UTF-8": (
        "posts, Parquet",
        "posts.parquet",
        replaced("reactions", "react\udce9ons".encode("utf-8", "surrogateescape").decode("latin-1")[:9]),
    ),
    "a negative split": (
        "dataset, prepared birds",
        "caltech_birds2011/0.1.1/dataset_info.json",
        replaced('"4"', '"-4"'),
    ),
    "a huge split": (
        "dataset, prepared birds",
        "caltech_birds2011/0.1.1/dataset_info.json",
        replaced('"4"', '"2147483648"'),
    ),
    "an infinite split": (
        "dataset, prepared birds",
        "caltech_birds2011/0.1.1/dataset_info.json",
        replaced('"4"', "Infinity"),
    ),
    "a class too few": (
        "dataset, prepared birds",
        "caltech_birds2011/0.1.1/label.labels.txt",
        replaced("002.Bird", ""),
    ),
    "a special token that is unknown": ("transformer", "tokenizer.json", replaced('"id":"<s>"', '"id":"?"')),
    "a count beyond int64": ("import, table", "table.jsonl", replaced('"loves": 3', '"loves": 1e30')),
    "an address that is none": ("import, crowdtangle", "export.csv", replaced("https://x.test/", "https://[x/")),
    "a huge size": (
        "transformer",
        "config.json",
        replaced('"layer_norm_eps": 1e-12', '"layer_norm_eps": 1' + "0" * 400),
    ),
    "counts that are text": ("shards", "manifest.json", replaced('"examples": ', '"examples": "x", "more": ')),
    "an unhashable modality": ("text encoder", "encoder.json", replaced('"modality": "text"', '"modality": {}')),
    "a step that is no number": ("run", "metrics.jsonl", replaced('"step": 1', '"step": 1e999')),
}


@pytest.mark.parametrize("name", [marked(name, reader) for name, (reader, _, _) in FINDINGS.items()])
def test_findings(fuzzed: Callable[[str], Fuzzed], name: str) -> None:
    reader, file, change = FINDINGS[name]
    of_reader = fuzzed(reader)
    finding = of_reader.check(file, change(of_reader.files[file]))
    assert finding is None, finding.trace or finding.what


def test_a_reader_that_breaks_is_found(tmp_path: Path) -> None:
    def read(directory: Path) -> None:
        if json.loads((directory / "a.json").read_text())["count"] > 10:
            raise KeyError("too many")

    reader = Fuzzed(Reader(lambda directory: (directory / "a.json").write_text('{"count": 1}'), read), tmp_path)
    draw = random.Random(0)
    found = {finding.what.split(":")[0] for _ in range(300) if (finding := reader.check(*reader.mutated(draw)))}
    assert {"KeyError in ?", "TypeError in ?", "JSONDecodeError in ?"} <= found
    assert (tmp_path / "valid" / "a.json").read_text() == '{"count": 1}'


@pytest.mark.parametrize("name", ["posts, gzip", "posts, Zstandard", "posts, tar", "dataset, zip"])
def test_content_of_containers_is_mutated(fuzzed: Callable[[str], Fuzzed], name: str) -> None:
    """A mutated container opens as often as not: most mutations are of what it holds."""
    ((_, content),) = fuzzed(name).files.items()
    opened = 0
    for seed in range(100):
        other = mutations.mutated(content, random.Random(seed))
        for view in mutations.VIEWS:
            try:
                opened += view(other, random.Random(0)) is not None
            except Exception:
                continue
    assert opened > 40
