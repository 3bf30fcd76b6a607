"""Train an encoder to predict engagement.

The run folder gets checkpoints, metrics.jsonl, TensorBoard events and, at the end, the encoder. The same command goes
on where an interrupted run stopped. On several machines every process gets the same command: see docs/pods.md.

EXAMPLE
    python scripts/train.py --config configs/demo.py --config.data.shards=demo/shards --workdir demo/run
    tensorboard --logdir demo/run/tensorboard
"""

from pathlib import Path

from absl import flags

from vise_jax import cli

# Images of the probe through the encoder at a time.
_PROBE_BATCH = 64

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The run folder: new, or one to go on with.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    config, workdir = cli.required(CONFIG), Path(cli.required(WORKDIR))
    import jax

    from vise_jax.encoder import imagenet_preprocessing
    from vise_jax.evaluation.protocols import knn
    from vise_jax.training import loop

    evaluators = ()
    if config.training.probe:
        preprocessing = imagenet_preprocessing(config.data.image_size)
        evaluators = (knn.watcher(Path(config.training.probe), preprocessing, _PROBE_BATCH),)
    encoder = loop.train(config, workdir, evaluators)
    if jax.process_index() == 0:
        print(encoder)


if __name__ == "__main__":
    cli.run(main, __doc__)
