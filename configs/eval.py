r"""Evaluate an encoder. The config's argument is TASK,PROTOCOL[,SETTING].

TASK      unbiased_emotion, politics, hateful_memes, cub, or folder (any labeled images)
PROTOCOL  linear, finetune, knn or lowshot
SETTING   image, text, image_text, or with finetune image_frozen_text; by default what Sec. 4 uses

COMMAND   python scripts/evaluate.py --config configs/eval.py:cub,linear --encoder ENCODER --data CUB_200_2011 \
              --output RESULTS
          python scripts/evaluate.py --config configs/eval.py:hateful_memes,linear,text --text-encoder ROBERTA \
              --data hateful_memes --output RESULTS

EXPECTED  The paper's numbers, where its main text prints them. Other cells are bars of Figures 3 to 6 without numbers.

          CUB-200-2011, top-1 accuracy (Table 2)              linear  finetune
            ResNet-50            random:resnet50                3.42     63.39
                                 IN-Sup                        62.70     72.15
                                 VisE-1.2M                      9.95     72.65
                                 VisE-250M                      9.92     76.58
            ResNeXt-101 32x16d   random:resnext101_32x16d       7.04     62.80
                                 IN-Sup                        65.16     84.21
                                 IG-940M-IN                    72.69     85.28
                                 VisE-1.2M                      9.76     73.73
                                 VisE-250M                     10.93     79.54

          VisE-1.2M, ResNet-50 (Table 3)          reactions + comments   comments   reactions
            unbiased_emotion,linear                  45.74 ± 2.15     49.15 ± 1.30   33.05 ± 1.75
            unbiased_emotion,finetune                74.20 ± 1.93     72.16 ± 1.09   70.03 ± 2.64
            politics,linear                          0.6100           0.6005         0.6052
            politics,finetune                        0.6044           0.5921         0.5980
            hateful_memes,linear                     64.30            63.43          63.09
            hateful_memes,finetune                   64.69            63.81          63.42

          Text alone on Hateful Memes, ROC AUC (Fig. 6): 0.6363 with finetune,text and 0.5983 with linear,text.
"""

from ml_collections import ConfigDict

from vise_jax import config as vise_config


def get_config(argument: str = "folder,linear") -> ConfigDict:
    config = vise_config.evaluation()
    task, _, rest = argument.partition(",")
    config.task = task
    config.protocol, _, config.setting = rest.partition(",")
    return config
