r"""VisE-1.2M: 100 epochs over 1.23 million posts (Sec. 4.1; epochs from the released files' names).

COMMAND   python scripts/train.py --config configs/vise_1m.py:resnet50 \
              --workdir RUN --config.data.shards=SHARDS
          (also :resnet101 and :resnext101_32x16d)
EXPECTED  the paper, ResNet-50, Table 3, linear / fine-tuned: UnbiasedEmotion 45.74 / 74.20, Politics 0.6100 / 0.6044,
          Hateful Memes 64.30 / 64.69. Not run here.
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config


def get_config(encoder: str = "resnet50") -> ConfigDict:
    config = vise_config.base()
    config.model.name = encoder
    config.model.dtype = "bfloat16"
    config.training.epochs = 100.0
    return config
