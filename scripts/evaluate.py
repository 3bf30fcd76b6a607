r"""Measure an encoder on a task, and write one JSON file with the result.

The config's argument is TASK,PROTOCOL[,SETTING], see configs/eval.py. The data of a task are in their authors' layout,
see docs/datasets.md; those of `folder` are class directories (perhaps below train/, validation/ and test/), a .zip of
them, a directory of such archives, or a CSV file with the columns `image` and `label`, and perhaps `split`, `text` and
`group`. Features are cached; the same command again resumes, or reads its result.

EXAMPLE
    python scripts/evaluate.py --config configs/eval.py:folder,linear --encoder RUN/encoder --data IMAGES \
        --output RESULTS
    python scripts/evaluate.py --config configs/eval.py:folder,finetune --encoder random:RUN/encoder --data IMAGES \
        --output RESULTS --name "from scratch"
    python scripts/evaluate.py --config configs/eval.py:hateful_memes,linear --encoder RUN/encoder \
        --text-encoder ROBERTA --data hateful_memes --output RESULTS
"""

from absl import flags

from vise_jax import cli

_CONFIG = cli.define_config()
_ENCODER = flags.DEFINE_string(
    "encoder", None, "Directory of an image encoder; random:NAME or random:DIRECTORY for an untrained one."
)
_TEXT_ENCODER = flags.DEFINE_string("text-encoder", "", "Directory of a text encoder, for settings with text.")
_LEAK_CHECK = flags.DEFINE_string(
    "leak-check", "", "Engagement shards: report images that are near-duplicates of their examples."
)
_DATA = flags.DEFINE_string("data", None, "The task's data, a directory, a .zip or a .csv file.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the results and of the features.")
_NAME = flags.DEFINE_string("name", "", "The encoder's name in tables; by default that of its directory.")


def main(words: list[str]) -> None:
    """Measure, and print the result as a table of one row."""
    cli.no_words(words)
    config = cli.required(_CONFIG)
    data, output = cli.location(_DATA), cli.location(_OUTPUT)
    from vise_jax.data import datasets
    from vise_jax.evaluation import measure
    from vise_jax.reporting import tables

    shards = cli.location(_LEAK_CHECK) if _LEAK_CHECK.value else None
    with datasets.on_disk(data) as copy:
        result, path = measure.measure(
            config, _ENCODER.value or "", copy, output, _NAME.value, _TEXT_ENCODER.value, shards
        )
    tables.show(tables.build([{**result, "file": path.name}]))
    tables.show_metrics(result)
    print(f"written: {path}")


if __name__ == "__main__":
    cli.run(main, __doc__)
