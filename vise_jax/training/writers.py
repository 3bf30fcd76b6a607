"""Writers of metrics: `metrics.jsonl` and TensorBoard events."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tensorboardX import SummaryWriter

from vise_jax import artifact


class MetricsWriter:
    """Append records to `metrics.jsonl` and to TensorBoard events. A full disk is an `Interrupted`.

    Args:
        workdir: the run directory.
        step: number of steps done. Records of later steps, from a run that was killed after its last checkpoint, are
            dropped.
        writing: False in all processes but one: write nothing.
    """

    def __init__(self, workdir: Path, step: int, writing: bool = True):
        self._writing = writing
        self._path, self._workdir, self._step = workdir / "metrics.jsonl", workdir, step

    def __enter__(self) -> "MetricsWriter":
        if self._writing:
            logged = artifact.json_lines(self._path, ("step",))
            lines = [line for line, record in logged if record["step"] <= self._step]
            artifact.write_text(self._path, "".join(lines))
            with artifact.disk_full(self._path):
                self._file = open(self._path, "a", encoding="utf-8")
                self._events = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=self._step + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writing:
            with artifact.disk_full(self._path):
                self._file.close()
                self._events.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of one step."""
        if not self._writing:
            return
        # JSON has no NaN and no infinity: null says that there is no number.
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with artifact.disk_full(self._path):
            self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in metrics.items():
                self._events.add_scalar(name, value, step)
