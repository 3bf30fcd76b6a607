"""The labeling jobs on Apache Beam: the same functions in a `Map`, and what is added up in a `Combine`.

Whatever the runner, its workers have to see the posts and the output under the same paths as this machine.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax.engagement.fit_statistics import Corpus, Lowest
from vise_jax.errors import Interrupted, UserError
from vise_jax.labeling import local_runner
from vise_jax.labeling.input_split import Part

# Workers log their own doings, and errors that are raised here anyway.
_QUIET = "--default_sdk_harness_log_level=CRITICAL"


def each(work: local_runner.Work, parts: Sequence[Part], options: Sequence[str]) -> None:
    """Call `work(part, after_post)` for each part.

    Args:
        work: importable, and so are its arguments where it is a `partial`.
        parts: the parts.
        options: of the pipeline, e.g. `--runner=DirectRunner`.

    Raises:
        UserError: Beam is not installed or refuses its options, or `work` raised it.
    """
    print(f"labeling {len(parts):,} parts on Apache Beam", file=sys.stderr, flush=True)
    with _pipeline(options) as pipeline:
        _ = _map(pipeline, parts, partial(_call, work), "label")


def gather(
    work: Callable[[Part], Corpus], parts: Sequence[Part], labels: ConfigDict, path: Path, options: Sequence[str]
) -> None:
    """Gather the corpora of all parts and save the one that they make together.

    Args:
        work: gathers the corpus of a part; importable.
        parts: the parts.
        labels: the `labels` section of a config.
        path: where `Corpus.save` writes.
        options: of the pipeline.

    Raises:
        UserError: Beam is not installed or refuses its options, or `work` raised it.
    """
    beam = import_beam()
    plain = labels.to_dict()
    print(f"reading {len(parts):,} parts on Apache Beam", file=sys.stderr, flush=True)
    with _pipeline(options) as pipeline:
        corpora = _map(pipeline, parts, partial(_gather, work), "gather")
        counters = (
            corpora
            | "counts" >> beam.FlatMap(_counts)
            | "sum" >> beam.CombinePerKey(sum)
            | "all counts" >> beam.combiners.ToDict()
        )
        samples = [
            corpora
            | f"items of {name}" >> beam.FlatMap(partial(_sample, name))
            | f"sample of {name}" >> beam.CombineGlobally(_lowest(beam, labels[f"max_fit_{name}"]))
            for name in ("comments", "reactions")
        ]
        _ = (
            pipeline
            | "once" >> beam.Create([str(path)])
            | "save" >> beam.Map(_save, plain, *map(beam.pvalue.AsSingleton, (counters, *samples)))
        )


def import_beam() -> Any:
    """The `apache_beam` module.

    Raises:
        UserError: it is not installed.
    """
    try:
        # It complains about cloud libraries that nobody asked for.
        logging.disable(logging.WARNING)
        import apache_beam
    except ImportError as error:
        raise UserError("--runner beam needs Apache Beam: pip install -e '.[beam]'.") from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _map(pipeline: Any, parts: Sequence[Part], function: Callable[[Part], Any], name: str) -> Any:
    beam = import_beam()
    # Without the reshuffle a runner would fuse the parts with their reading, and give all of them to one worker.
    return pipeline | "parts" >> beam.Create(parts) | "spread" >> beam.Reshuffle() | name >> beam.Map(function)


@contextlib.contextmanager
def _pipeline(options: Sequence[str]) -> Iterator[Any]:
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    quiet = [] if any(option.startswith(_QUIET.split("=")[0]) for option in options) else [_QUIET]
    try:
        with beam.Pipeline(options=PipelineOptions([*options, *quiet])) as pipeline:
            yield pipeline
    except SystemExit as error:  # of the options' parser, which has said why
        raise UserError(f"Apache Beam refuses its options {' '.join(options)!r}: see its documentation.") from error
    except Exception as error:
        # Runners hand on the text of what went wrong in a worker, seldom the exception, and say where it was.
        found = re.search(
            r"(?:UserError|Interrupted): (.*?)(?: \[while running|\\n|\n|$)", f"{type(error).__name__}: {error}"
        )
        if found is None and "No space left on device" in str(error):
            raise Interrupted(
                "The disk of a worker is full: free some space, and run the same command again."
            ) from error
        if found is None:
            raise
        # An interruption keeps what was done, whatever process it came from.
        kind = Interrupted if found[0].startswith("Interrupted") else UserError
        raise kind(found[1]) from error


def _call(work: local_runner.Work, part: Part) -> None:
    local_runner.use_one_core()
    work(part, lambda: None)


def _gather(work: Callable[[Part], Corpus], part: Part) -> list[Any]:
    local_runner.use_one_core()
    return work(part).to_json()


def _counts(corpus: list[Any]) -> Iterator[tuple[tuple[int, str], int]]:
    for kind, counts in enumerate(corpus[:4]):
        for name, count in counts.items():
            yield (kind, name), count


def _sample(name: str, corpus: list[Any]) -> Iterable[tuple[str, Any]]:
    return corpus[4 if name == "comments" else 5]


def _lowest(beam: Any, size: int) -> Any:
    """`Lowest` as a combiner; its accumulator is a plain list, for the coder."""

    class _Lowest(beam.CombineFn):
        def create_accumulator(self) -> list[Any]:
            return []

        def add_input(self, accumulator: list[Any], item: Any) -> list[Any]:
            accumulator.append(item)
            return self._cut(accumulator) if len(accumulator) >= 2 * size else accumulator

        def merge_accumulators(self, accumulators: Iterable[list[Any]]) -> list[Any]:
            return self._cut([item for accumulator in accumulators for item in accumulator])

        def extract_output(self, accumulator: list[Any]) -> list[Any]:
            return self._cut(accumulator)

        def _cut(self, items: list[Any]) -> list[Any]:
            return Lowest(size, items).ranked()

    return _Lowest()


def _save(
    path: str, labels: dict[str, Any], counters: dict[tuple[int, str], int], comments: list[Any], reactions: list[Any]
) -> None:
    parts: list[dict[str, int]] = [{}, {}, {}, {}]
    for (kind, name), count in counters.items():
        parts[kind][name] = count
    Corpus.from_json([*parts, comments, reactions], ConfigDict(labels)).save(Path(path))
