"""Train an encoder to predict engagement.

The run folder gets checkpoints, metrics.jsonl, TensorBoard events and, at the end, the encoder. The same command goes
on where an interrupted run stopped.

EXAMPLE
    python scripts/train.py --config configs/demo.py --config.data.shards=demo/shards --workdir demo/run
    tensorboard --logdir demo/run/tensorboard
"""

from pathlib import Path

from absl import flags

from vise_jax import cli

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder: new, or one to go on with.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    config, workdir = cli.required(CONFIG), Path(cli.required(WORKDIR))
    import jax

    from vise_jax.training import loop

    encoder = loop.train(config, workdir)
    if jax.process_index() == 0:
        print(encoder)


if __name__ == "__main__":
    cli.run(main, __doc__)
