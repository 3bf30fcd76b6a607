"""Workers of a labeling job."""

from functools import partial
from pathlib import Path

import jax

from vise_jax.labeling import local_runner
from vise_jax.labeling.input_split import InputSplit
from vise_jax.posts import Cursor


def write_platforms(path: Path, input_split: InputSplit, after_post) -> None:
    path.write_text(str(jax.config.jax_platforms))


def test_workers_leave_accelerators_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    input_split = InputSplit(Path("posts.jsonl"), "", 0, Cursor(), None, (0, 0))
    local_runner.each(partial(write_platforms, tmp_path / "platforms"), [input_split], workers=1, description="work")
    assert (tmp_path / "platforms").read_text() == "cpu"
