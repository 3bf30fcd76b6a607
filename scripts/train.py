"""Train an encoder to predict engagement.

The run directory gets checkpoints, train.log, metrics.jsonl, TensorBoard events and, at the end, the encoder. The same
command resumes an interrupted run. On several machines run the same command in every process: see docs/pods.md.

EXAMPLE
    python scripts/train.py --config configs/demo.py --config.data.shards=demo/shards --workdir demo/run
    tensorboard --logdir demo/run/tensorboard
"""

import contextlib

from absl import flags

from vise_jax import artifact, cli

# Batch size of the probe.
_PROBE_BATCH = 64

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "The run directory, a new one or one to resume; a path or a URL.")


def main(words: list[str]) -> None:
    cli.no_words(words)
    config, workdir = cli.required(CONFIG), cli.location(WORKDIR)
    import jax

    from vise_jax.data import datasets
    from vise_jax.evaluation.protocols import knn
    from vise_jax.preprocessing import Preprocessing
    from vise_jax.training import evaluators, pretrain

    with contextlib.ExitStack() as stack:

        def make_probe() -> evaluators.Probe:
            path = stack.enter_context(datasets.on_disk(artifact.location(config.training.probe)))
            return knn.make_probe(path, Preprocessing.imagenet(config.data.image_size), _PROBE_BATCH)

        encoder = pretrain.train(config, workdir, make_probe if config.training.probe else None)
    if jax.process_index() == 0:
        print(encoder)


if __name__ == "__main__":
    cli.run(main, __doc__)
