r"""VisE-1.2M: 100 epochs over 1.23 million posts (Sec. 4.1; epochs from the released files' names).

COMMAND   python scripts/train.py --config configs/vise_1m.py:resnet50 \
              --workdir RUN --config.data.shards=SHARDS
          (also :resnet101 and :resnext101_32x16d; label.py takes the same, and with :resnet50,123k, 308k or 615k it
          labels that share of the 1.23 million, each a subset of the next: Fig. 4)
EXPECTED  the paper, ResNet-50, Table 3, linear / fine-tuned: UnbiasedEmotion 45.74 / 74.20, Politics 0.6100 / 0.6044,
          Hateful Memes 64.30 / 64.69. Not run here.
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config
from vise_jax.errors import UserError

# Posts, of 1.23 million.
SUBSETS = {"": 1_230_000, "123k": 123_000, "308k": 308_000, "615k": 615_000}


def get_config(argument: str = "resnet50") -> ConfigDict:
    encoder, _, subset = argument.partition(",")
    if subset not in SUBSETS:
        raise UserError(f"configs/vise_1m.py has no subset {subset!r}: name one of {', '.join(filter(None, SUBSETS))}.")
    config = vise_config.base()
    config.labels.train_fraction = SUBSETS[subset] / SUBSETS[""]
    config.model.name = encoder
    config.training.epochs = 100.0
    return config
