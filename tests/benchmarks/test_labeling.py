"""The benchmark of labeling: its variants give the labels of the labeler, and its last line can be read."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vise_jax.engagement import kmeans

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def labeling(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("labeling")


@pytest.mark.slow
def test_quick_run_on_posts(tmp_path: Path) -> None:
    posts = tmp_path / "posts.jsonl"
    texts = ["the sea 😀", "the storm, the sea", "a storm http://a.bc/d"]
    with open(posts, "w") as file:
        for number in range(60):
            file.write(json.dumps({"post_id": str(number), "comments": texts[: number % 4]}) + "\n")
    command = [sys.executable, "benchmarks/labeling.py", "--quick", "--posts", str(posts), "--comments", "500"]
    command += ["--rounds", "1", "--workers", "1", "--clusters", "3", "--dimensions", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "labeling"
    assert result["messages"] == 90
    assert not result["made_up"]
    peers = {"scikit-learn", "scikit-learn, our fast tokenizer"}
    assert set(result["ratios"]) == peers | {f"{peer}, each message once" for peer in peers}
    assert all(found["low"] <= found["median"] <= found["high"] for found in result["ratios"].values())
    assert result["equal_labels"] == dict.fromkeys(peers, 1.0)
    for peaks in result["peak_bytes"].values():
        assert set(peaks) == {"50", "500"}
        assert all(50e6 < peak < 4e9 for peak in peaks.values())


def test_all_variants_give_the_labelers_labels(labeling: ModuleType) -> None:
    messages = labeling.generate(1500)
    fitted = labeling.fit(messages, 8, 12)
    assert fitted.centroids.shape == (8, 12)
    comments = [*messages[:300], "", "@nobody", "😀 😀"]
    # Every variant starts without a memory of words, whatever others have seen.
    labeling.prepare(labeling.OURS, fitted)(comments)
    assert "_split" not in vars(fitted.encoder)
    phi = fitted.encoder.encode(comments)
    assert "_split" in vars(fitted.encoder)
    expected = np.where(phi.any(axis=1), kmeans.assign(phi, fitted.centroids), -1)
    assert len(set(expected.tolist())) > 5
    assert expected[-3:-1].tolist() == [-1, -1]
    for variant in labeling.VARIANTS:
        np.testing.assert_array_equal(labeling.prepare(variant, fitted)(comments), expected)


def test_a_stretch_of_the_repeated_messages(labeling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labeling, "BATCH", 4)
    batches = []

    def label(texts: list[str]) -> np.ndarray:
        batches.append(len(texts))
        return np.array([int(text) for text in texts])

    found = labeling.label_all(label, ["10", "11", "12"], 2, 12)
    assert found.tolist() == [12, 10, 11, 12, 10, 11, 12, 10, 11, 12]
    assert batches == [4, 4, 2]


def test_variants_take_turns(labeling: ModuleType) -> None:
    calls = []

    class Crew:
        def __init__(self, name: str):
            self.name = name

        def renew(self, comments: int) -> None:
            calls.append(f"renew {self.name}")

        def label(self, comments: int) -> np.ndarray:
            calls.append(self.name)
            return np.full(comments, len(calls))

    crews = {name: Crew(name) for name in "ab"}
    seconds, labels = labeling.take_turns(crews, 5, 2, anew=False)
    assert calls == ["renew a", "a", "renew b", "b", "a", "b"]
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}
    assert labels["b"].tolist() == [6] * 5
    calls.clear()
    labeling.take_turns(crews, 5, 2, anew=True)
    assert calls == ["renew a", "a", "renew b", "b"] * 2


def test_made_up_messages_are_always_the_same_and_as_varied_as_people_s(labeling: ModuleType) -> None:
    messages = labeling.generate(2000)
    assert messages == labeling.generate(2000)
    chunks = [chunk for message in messages for chunk in message.split()]
    assert 15 < len(chunks) / len(messages) < 25
    assert 0.05 < len(set(chunks)) / len(chunks) < 0.4
    text = " ".join(messages)
    assert all(sign in text for sign in ("http://", "@", "#", "😀", "❤️", ":)"))
