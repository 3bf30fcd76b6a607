"""The labeling jobs on Apache Beam: the same functions in a `Map`, and sums in a `Combine`.

The workers of any runner must see the posts and the output under the same paths as this machine. Statistics come back
to this machine through the pipeline's `--temp_location` if that is in an object store.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vise_jax import artifact
from vise_jax.engagement.fit_statistics import Corpus, Lowest
from vise_jax.errors import Interrupted, UserError
from vise_jax.labeling import local_runner
from vise_jax.labeling.input_split import InputSplit

log = logging.getLogger(__name__)

# Workers log errors that are raised here anyway.
_QUIET = "--default_sdk_harness_log_level=CRITICAL"


def each(work: local_runner.Work, input_splits: Sequence[InputSplit], options: Sequence[str]) -> None:
    """Call `work(input_split, after_post)` for each input split.

    Args:
        work: importable, and so are its arguments if it is a `partial`.
        input_splits: the input splits.
        options: of the pipeline, e.g. `--runner=DirectRunner`.

    Raises:
        UserError: Beam is not installed or refuses its options, or `work` raised it.
    """
    log.info(f"labeling {len(input_splits):,} input splits on Apache Beam")
    with _pipeline(options) as pipeline:
        _ = _map(pipeline, input_splits, partial(_call, work), "label")


def gather(
    work: Callable[[InputSplit], Corpus],
    input_splits: Sequence[InputSplit],
    labels: ConfigDict,
    path: Path,
    options: Sequence[str],
) -> None:
    """Gather the statistics of all input splits and save their sum.

    Args:
        work: gathers the statistics of an input split; importable.
        input_splits: the input splits.
        labels: the `labels` section of a config.
        path: the file that `Corpus.save` writes. Without an object store as `--temp_location`, a worker writes it.
        options: of the pipeline.

    Raises:
        UserError: Beam is not installed or refuses its options, or `work` raised it.
    """
    beam = import_beam()
    plain, written = labels.to_dict(), _seen_by_workers(path, options)
    log.info(f"reading {len(input_splits):,} input splits on Apache Beam")
    with _pipeline(options) as pipeline:
        corpora = _map(pipeline, input_splits, partial(_gather, work), "gather")
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
            | "once" >> beam.Create([str(written)])
            | "save" >> beam.Map(_save, plain, *map(beam.pvalue.AsSingleton, (counters, *samples)))
        )
    if written != path:
        with artifact.atomic_file(path) as file:
            file.write(artifact.read_object(written))
        artifact.remove_tree(written)


def import_beam() -> Any:
    """Import `apache_beam`.

    Raises:
        UserError: it is not installed.
    """
    try:
        # It warns of missing cloud libraries, which are optional.
        logging.disable(logging.WARNING)
        import apache_beam
    except ImportError as error:
        raise UserError("--runner beam needs Apache Beam: pip install -e '.[beam]'.") from error
    finally:
        logging.disable(logging.NOTSET)
    return apache_beam


def _map(pipeline: Any, input_splits: Sequence[InputSplit], function: Callable[[InputSplit], Any], name: str) -> Any:
    beam = import_beam()
    # Without the reshuffle a runner would fuse creation and work, and give all input splits to one worker.
    return (
        pipeline
        | "input splits" >> beam.Create(input_splits)
        | "spread" >> beam.Reshuffle()
        | name >> beam.Map(function)
    )


@contextlib.contextmanager
def _pipeline(options: Sequence[str]) -> Iterator[Any]:
    beam = import_beam()
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    quiet = [] if any(option.startswith(_QUIET.split("=")[0]) for option in options) else [_QUIET]
    try:
        with beam.Pipeline(options=PipelineOptions([*options, *quiet])) as pipeline:
            yield pipeline
    except SystemExit as error:  # of the options' parser, which has printed the reason
        raise UserError(f"Apache Beam refuses its options {' '.join(options)!r}: see its documentation.") from error
    except Exception as error:
        # Runners pass on the text of a worker's error, seldom the exception itself.
        match = re.search(
            r"(?:UserError|Interrupted): (.*?)(?: \[while running|\\n|\n|$)", f"{type(error).__name__}: {error}"
        )
        if match is None and "No space left on device" in str(error):
            raise Interrupted(
                "The disk of a worker is full: free some space, and run the same command again."
            ) from error
        if match is None:
            raise
        # An interruption keeps the finished work, whatever process it came from.
        kind = Interrupted if match[0].startswith("Interrupted") else UserError
        raise kind(match[1]) from error


def _seen_by_workers(path: Path, options: Sequence[str]) -> Path:
    """Return the path of a file that workers on any machine can write: in the pipeline's bucket for temporary files.

    What the workers exchange passes through it anyway. Without one, it is the path itself.
    """
    import_beam()
    from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

    directory = PipelineOptions([*options]).view_as(GoogleCloudOptions).temp_location
    if directory is None or not directory.startswith(("gs://", "s3://")):
        return path
    return artifact.location(directory) / f"vise_jax-{artifact.fingerprint(str(path))[:16]}.json.gz"


def _call(work: local_runner.Work, input_split: InputSplit) -> None:
    local_runner.use_one_core()
    work(input_split, lambda: None)


def _gather(work: Callable[[InputSplit], Corpus], input_split: InputSplit) -> list[Any]:
    local_runner.use_one_core()
    return work(input_split).to_json()


def _counts(corpus: list[Any]) -> Iterator[tuple[tuple[int, str], int]]:
    for kind, counts in enumerate(corpus[:4]):
        for name, count in counts.items():
            yield (kind, name), count


def _sample(name: str, corpus: list[Any]) -> Iterable[tuple[str, Any]]:
    return corpus[4 if name == "comments" else 5]


def _lowest(beam: Any, size: int) -> Any:
    """Return `Lowest` as a combiner; its accumulator is a plain list, for the coder."""

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
    counts: list[dict[str, int]] = [{}, {}, {}, {}]
    for (kind, name), count in counters.items():
        counts[kind][name] = count
    Corpus.from_json([*counts, comments, reactions], ConfigDict(labels)).save(artifact.location(path))
