r"""VisE-250M: 10 epochs over 250 million posts, mini-batch 1536 (Sec. 3.3; epochs from the released files' names).

COMMAND   python scripts/train.py --config configs/vise_250m.py:resnext101_32x16d \
              --workdir RUN --config.data.shards=SHARDS
          (also :resnet50, the default, and :resnet101)
EXPECTED  the paper: about 10 days on 32 V100 for ResNeXt-101 32x16d; Table 2, CUB-200-2011 linear / fine-tuned:
          ResNet-50 9.92 / 76.58, ResNeXt-101 32x16d 10.93 / 79.54. Not run here.
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config


def get_config(encoder: str = "resnet50") -> ConfigDict:
    config = vise_config.base()
    # About 50,000 posts to watch training with.
    config.labels.validation_fraction = 2e-4
    config.model.name = encoder
    return config
