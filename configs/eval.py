r"""Evaluate an encoder. The config's argument is TASK,PROTOCOL.

COMMAND   python scripts/evaluate.py --config configs/eval.py:folder,linear \
              --encoder RUN/encoder --data IMAGES --output RESULTS
EXPECTED  a JSON file in RESULTS with the test accuracy; `--encoder random:resnet50` measures the baseline
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config


def get_config(argument: str = "folder,linear") -> ConfigDict:
    config = vise_config.evaluation()
    config.task, _, config.protocol = argument.partition(",")
    return config
