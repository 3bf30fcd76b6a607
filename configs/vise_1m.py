r"""VisE-1.2M: 100 epochs over 1.23 million posts (Sec. 4.1; epochs from the released files' names).

COMMAND   python scripts/train.py --config configs/vise_1m.py:resnet50 \
              --workdir RUN --config.data.shards=SHARDS
          Also :resnet101 and :resnext101_32x16d. label.py takes the same, and with :resnet50,123k, 308k or 615k it
          labels that many of the 1.23 million, each a subset of the next (Fig. 4). :resnet50,comments and
          :resnet50,reactions train one head (Table 3).
EXPECTED  the paper, ResNet-50, Table 3, linear / fine-tuned: UnbiasedEmotion 45.74 / 74.20, Politics 0.6100 / 0.6044,
          Hateful Memes 64.30 / 64.69; comments alone 49.15 / 72.16, 0.6005 / 0.5921, 63.43 / 63.81; reactions alone
          33.05 / 70.03, 0.6052 / 0.5980, 63.09 / 63.42. Not run here.
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config
from vise_jax.errors import UserError
from vise_jax.reproduction.paper import SUBSETS, VISE_1M

HEADS = ("comments", "reactions")


def get_config(argument: str = "resnet50") -> ConfigDict:
    encoder, *changes = argument.split(",")
    config = vise_config.base()
    config.model.name = encoder
    config.training.epochs = 100.0
    for change in changes:
        if change in SUBSETS:
            config.labels.train_fraction = SUBSETS[change] / VISE_1M
        elif change in HEADS:
            config.model.heads = (change,)
        else:
            choices = ", ".join((*SUBSETS, *HEADS))
            raise UserError(f"configs/vise_1m.py has no {change!r}: choose from {choices}.")
    return config
