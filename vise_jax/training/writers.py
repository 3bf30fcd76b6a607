"""The record of a run: `metrics.jsonl` for programs, TensorBoard events for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter

from vise_jax import artifact


class MetricsWriter:
    """Appends records to `metrics.jsonl` and to TensorBoard's events, in one process of a run.

    Args:
        workdir: the run folder.
        step: steps done. Records of later ones, left by a run that was killed after its last checkpoint, are dropped.
        writing: whether this is that process; in others nothing is written.
    """

    def __init__(self, workdir: Path, step: int, writing: bool = True):
        self._writing = writing
        if not writing:
            return
        path = workdir / "metrics.jsonl"
        artifact.write_text(path, "".join(line for line in _lines(path) if json.loads(line)["step"] <= step))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writing:
            self._file.close()
            self._events.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step."""
        if not self._writing:
            return
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)


def _lines(path: Path) -> list[str]:
    """The complete lines of the file: a kill can cut the last one short."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
