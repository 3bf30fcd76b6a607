"""The whole of VisE on the simulated demo corpus, on a laptop.

COMMAND   make demo
EXPECTED  the trained encoder's linear accuracy beats the untrained one's by 15 points or more, on topic and on affect
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config


def get_config() -> ConfigDict:
    config = vise_config.base()
    config.labels.comment_clusters = 16
    config.labels.reaction_clusters = 8
    config.labels.cluster_share = 0.3
    config.labels.comment_dim = 32
    config.data.image_size = 64
    config.model.name = "resnet18"
    config.model.width = 32
    config.training.batch_size = 64
    config.training.steps = 600
    config.training.checkpoint_every = 200
    return config
