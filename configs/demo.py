"""The whole of VisE on the simulated demo corpus, on a laptop.

COMMAND   make demo
EXPECTED  linear accuracy on held-out images, trained / untrained, with three seeds (corpus, labels, training):
          topic 88.75 / 34.25, 82.25 / 34.00, 85.00 / 32.25; affect 53.75 / 27.00, 48.75 / 25.25, 50.25 / 28.75;
          comment clusters and hidden topics: normalized mutual information 0.815, 0.805, 0.810 per comment
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config


def get_config() -> ConfigDict:
    config = vise_config.base()
    config.labels.comment_clusters = 12
    config.labels.reaction_clusters = 8
    # 4,000 posts are few: most are needed for training.
    config.labels.cluster_fraction = 0.2
    config.labels.comment_dim = 32
    # Posts have images of 80 to 160 pixels.
    config.labels.image_side = 64
    config.data.image_size = 48
    # Smaller crops often miss what makes the affect.
    config.data.crop_area = (0.3, 1.0)
    config.model.name = "resnet18"
    config.model.width = 32
    config.training.batch_size = 64
    # Few steps: a high rate pays.
    config.training.learning_rate = 0.8
    config.training.steps = 600
    config.training.checkpoint_every = 300
    return config
