"""The parts of the benchmark of the jobs: posts that can be labeled, and a checksum that sees every file."""

import json
from pathlib import Path

from vise_jax.labeling.images import read_image
from vise_jax.posts import RejectLog, read


def test_simulated_posts_are_good_ones(load_benchmark, tmp_path: Path) -> None:
    benchmark = load_benchmark("jobs")
    benchmark.write_posts(tmp_path, count=30, comments=3, files=2, image_size=16)
    found = []
    for path in sorted(tmp_path.glob("*.jsonl")):
        reject_log = RejectLog(path)
        found.extend(read(path, reject_log))
        assert not reject_log.rejected
    assert len({post.post_id for post in found}) == 30
    assert sum(len(post.comments) for post in found) > 30
    assert all(sum(post.reactions) > 0 and read_image(post, 10**6) for post in found)
    assert len({json.dumps(post.comments) for post in found}) > 20


def test_the_checksum_sees_names_and_bytes(load_benchmark, tmp_path: Path) -> None:
    benchmark = load_benchmark("jobs")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = benchmark.checksum(tmp_path)
    assert benchmark.checksum(tmp_path) == first
    (tmp_path / "a" / "x").write_text("2")
    second = benchmark.checksum(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert len({first, second, benchmark.checksum(tmp_path)}) == 3
