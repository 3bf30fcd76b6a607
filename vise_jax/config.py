"""Every config key: its default, the rule for its values, and what it means. An experiment is a short diff of `base()`.

"The paper" is Jia et al., ICCV 2021. "Not in the paper" marks a value that its main text leaves open and this project
chose.
"""

import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from vise_jax.errors import UserError

# A rule: the values that are allowed, and the same in words for the error message.
Rule = tuple[Callable[[Any], Any], str]
# Key → default and rule.
Section = dict[str, tuple[Any, Rule]]


def one_of(*choices: str) -> Rule:
    """Return the rule of a key with named choices."""
    names = [f'"{choice}"' for choice in choices]
    return lambda value: value in choices, f"{', '.join(names[:-1])} or {names[-1]}"


def _is_range(value: Any) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]


def _below_one(value: Any) -> bool:
    return 0 <= value < 1


ANY: Rule = lambda value: True, "anything"
POSITIVE: Rule = lambda value: value > 0, "above 0"
AT_LEAST_1: Rule = lambda value: value >= 1, "at least 1"
NOT_NEGATIVE: Rule = lambda value: value >= 0, "at least 0"
FRACTION: Rule = lambda value: 0 <= value <= 1, "between 0 and 1"
OPEN_FRACTION: Rule = lambda value: 0 < value < 1, "above 0 and below 1"
BELOW_1: Rule = _below_one, "at least 0 and below 1"
# The default None of an integer key.
OPTIONAL_INT = object()

LABELS: Section = {
    # Clusters of comments and of reaction profiles, one K-means each (Sec. 3.1). Their number is not in the paper.
    "comment_clusters": (5000, AT_LEAST_1),
    "reaction_clusters": (128, AT_LEAST_1),
    # Fewer clusters than asked for where there are not enough distinct points, instead of an error.
    "allow_fewer_clusters": (False, ANY),
    # Share of the posts that only make clusters and are never trained on (Sec. 3.1: 20M of 270M).
    "cluster_fraction": (20 / 270, OPEN_FRACTION),
    # Share of the posts whose examples are kept apart, in shards of their own, to watch training with.
    "validation_fraction": (0.0, FRACTION),
    # Share of the training posts that become examples; a smaller share is a subset of a larger one (Fig. 4).
    "train_fraction": (1.0, (lambda value: 0 < value <= 1, "above 0 and at most 1")),
    # A comment cluster that fewer posts than this made is no label: so few people could be told from it.
    "min_posts": (2, AT_LEAST_1),
    # Comments drawn from a post at most (Sec. 3.2).
    "max_comments": (100, AT_LEAST_1),
    # "set": every cluster among a post's comments weighs the same. "count": as often as it occurs. Not in the paper.
    "label_weights": ("set", one_of("set", "count")),
    # phi_C, the weighted mean of a comment's token vectors; the paper's embeddings are not public. "lsa": truncated
    # SVD of the comments themselves. "word_vectors": a file of them. "static": a model2vec folder, with its tokenizer.
    "comment_encoder": ("lsa", one_of("lsa", "word_vectors", "static")),
    # That file (word2vec, GloVe or fastText .vec, plain or gzipped) or folder; not for LSA.
    "vectors": ("", ANY),
    # "idf": rare tokens weigh more. "none": all weigh the same, as in model2vec's own mean. Not in the paper.
    "token_weights": ("idf", one_of("idf", "none")),
    # Dimensions of LSA.
    "comment_dim": (256, AT_LEAST_1),
    # A token is in the vocabulary when this many comments hold it, the most frequent ones first.
    "min_comment_count": (5, AT_LEAST_1),
    "max_vocabulary": (50_000, AT_LEAST_1),
    # Comments that the SVD and K-means are fitted on at most, drawn evenly from the cluster split.
    "max_fit_comments": (1_000_000, AT_LEAST_1),
    "max_fit_reactions": (1_000_000, AT_LEAST_1),
    # Passes over the points, or mini-batches; K-means stops when the inertia falls by a smaller share than tolerance.
    "kmeans_iterations": (25, AT_LEAST_1),
    "kmeans_tolerance": (1e-4, NOT_NEGATIVE),
    # Points of a mini-batch; 0 = Lloyd's algorithm on all of them.
    "kmeans_batch": (0, NOT_NEGATIVE),
    # File whose bytes salt the hashes of post ids (splits, and the ids in shards); `label.py fit` makes it where there
    # is none. Without one the salt follows from `seed`, which anyone can repeat: name a file where ids must stay
    # unlinkable, and keep it secret.
    "salt_file": ("", ANY),
    # An image with more pixels is rejected before it is decoded.
    "max_image_pixels": (50_000_000, AT_LEAST_1),
    # A shard is closed when it has grown to this size.
    "shard_megabytes": (128.0, POSITIVE),
    # A .jsonl or .parquet file is worked on in parts of this size, so that several workers can share it.
    "part_megabytes": (128.0, POSITIVE),
    # The job stops when a larger share of a part's posts is malformed or has a broken image.
    "max_rejected_fraction": (0.5, FRACTION),
    "seed": (0, NOT_NEGATIVE),
}

DATA: Section = {
    # The folder that `label.py run` wrote.
    "shards": ("", ANY),
    # Side of the square crop, in pixels.
    "image_size": (224, (lambda value: value >= 8, "at least 8")),
    # Random-resized-crop: range of its area, as a share of the image's, and of its aspect ratio. Not in the paper.
    "crop_area": ((0.08, 1.0), (lambda value: _is_range(value) and value[1] <= 1, "two shares, the smaller first")),
    "crop_ratio": ((3 / 4, 4 / 3), (_is_range, "two ratios, the smaller first")),
    # Low-pass filter when a crop shrinks (as Pillow does); off is faster, and what tf.image does by default.
    "antialias": (False, ANY),
    # Horizontal flips, on the device.
    "flip": (True, ANY),
    # Shards come in random order, and records are shuffled within groups of this many shards: the window that a batch
    # is drawn from. The processes share a group; each holds its part of two to three groups in memory (3 GB with one
    # process and shards of 128 MB). At least as many as there are processes, so that each reads shards of its own.
    "shuffle_shards": (8, AT_LEAST_1),
    # Threads that decode, of each process; 0 = one per core.
    "threads": (0, NOT_NEGATIVE),
    # Corrupt examples are skipped and named in corrupt_examples.jsonl. The run stops when they are a larger fraction of
    # all training examples.
    "max_corrupt_fraction": (0.01, FRACTION),
}

MODEL: Section = {
    # A name of `vise_jax.models.ENCODERS`.
    "name": ("resnet50", ANY),
    # "imagenet": 7x7 stride 2 and max-pooling; "cifar": 3x3 stride 1, for images of 32 to 64 pixels.
    "stem": ("imagenet", one_of("imagenet", "cifar")),
    # Channels of the first stage.
    "width": (64, AT_LEAST_1),
    # The last batch norm of each block starts at zero, so that blocks start as the identity. Not in the paper.
    "zero_init_last_bn": (True, ANY),
    # Examples that share batch statistics; 0 = the whole batch. None = one group per device (and microbatch), as
    # per-GPU batch norm; a run keeps the groups that it began with, also on another number of devices.
    "bn_group": (OPTIONAL_INT, (lambda value: value is None or value >= 0, "None, or at least 0")),
    "bn_momentum": (0.9, FRACTION),
    "bn_epsilon": (1e-5, POSITIVE),
    # Type of activations and products; parameters, statistics, reductions and the loss stay float32. "auto": bfloat16
    # on accelerators, float32 on CPUs.
    "dtype": ("auto", one_of("auto", "float32", "bfloat16")),
    # Which engagement is predicted, one linear head each (Table 3 leaves one out).
    "heads": (
        ("comments", "reactions"),
        (
            lambda value: value and len(set(value)) == len(value) and set(value) <= {"comments", "reactions"},
            '("comments", "reactions") or one of the two',
        ),
    ),
}

TRAINING: Section = {
    # Images in a step, over all devices of all processes (Sec. 3.3).
    "batch_size": (1536, AT_LEAST_1),
    # Parts that a device takes its share of the batch in, one after the other, to need less memory; the result is the
    # large batch's. Batch norm's groups must fit into a part.
    "microbatches": (1, AT_LEAST_1),
    # Stages of the encoder (1 to 4) whose activations are computed again in the backward pass instead of kept.
    "remat": ((), (lambda value: set(value) <= {1, 2, 3, 4}, "numbers of stages, 1 to 4")),
    # Passes over the shards (the released files' names say 10 for VisE-250M and 100 for VisE-1.2M).
    "epochs": (10.0, POSITIVE),
    # Steps instead of epochs; None = as `epochs` says.
    "steps": (OPTIONAL_INT, (lambda value: value is None or value > 0, "None, or at least 1")),
    # "sgd", or "adamw" (not the paper's). Not in the paper's main text, nor are the next nine.
    "optimizer": ("sgd", one_of("sgd", "adamw")),
    # Peak rate per 256 images, scaled linearly with the batch.
    "learning_rate": (0.1, POSITIVE),
    # Of SGD.
    "momentum": (0.9, BELOW_1),
    # Of AdamW: decay of the two moments, and what is added to the root of the second.
    "adam_betas": (
        (0.9, 0.999),
        (lambda value: len(value) == 2 and all(map(_below_one, value)), "two numbers, each at least 0 and below 1"),
    ),
    "adam_epsilon": (1e-8, POSITIVE),
    # Not on biases and batch norm.
    "weight_decay": (1e-4, NOT_NEGATIVE),
    # Share of the steps in which the rate rises linearly, before the schedule lowers it.
    "warmup_fraction": (0.05, FRACTION),
    # "cosine" to 0; "step": times `decay_factor` at each of `decays` equal intervals (Mahajan et al. 2018 halve it);
    # "constant".
    "schedule": ("cosine", one_of("cosine", "step", "constant")),
    "decays": (10, AT_LEAST_1),
    "decay_factor": (0.5, OPEN_FRACTION),
    # Folder of an encoder to start from; its heads, if it has any, are left behind. A run that has a checkpoint goes on
    # from there instead.
    "init_from": ("", ANY),
    # Steps between checkpoints, and how many of the newest are kept.
    "checkpoint_every": (5000, AT_LEAST_1),
    "keep_checkpoints": (3, AT_LEAST_1),
    # Minutes after which a checkpoint is due even so; 0 = never.
    "checkpoint_minutes": (0.0, NOT_NEGATIVE),
    # Keep the checkpoint with the lowest validation loss, too, in the folder `best`.
    "keep_best": (True, ANY),
    # Steps between lines of metrics.jsonl.
    "log_every": (10, AT_LEAST_1),
    # Steps between evaluations on the validation shards and the labeled images of `probe`; 0 = never.
    "evaluate_every": (5000, NOT_NEGATIVE),
    # Labeled images (a folder of class folders, a .zip or a .csv, as for evaluate.py) whose nearest neighbors in the
    # features are watched; "" for none.
    "probe": ("", ANY),
    # "auto": several processes where Slurm, Kubernetes, Cloud TPU or Open MPI says so; "off"; or the coordinator, the
    # number of processes and which one this is: "HOST:PORT,PROCESSES,INDEX".
    "distributed": (
        "auto",
        (
            lambda value: value in ("auto", "off") or bool(re.fullmatch(r"[^,]+:\d+,\d+,\d+", value)),
            '"auto", "off" or "HOST:PORT,PROCESSES,INDEX"',
        ),
    ),
    # A process that is not heard of for so long is taken for dead, and the others end.
    "heartbeat_seconds": (100, AT_LEAST_1),
    "seed": (0, NOT_NEGATIVE),
}

PROFILE: Section = {
    # First and last step of a trace in RUN/profile, for `tensorboard` or xprof; () for none.
    "steps": (
        (),
        (
            lambda value: len(value) == 0 or (len(value) == 2 and 0 < value[0] <= value[1]),
            "two numbers of steps, the first one first, or ()",
        ),
    ),
}

# One evaluation; `configs/eval.py:TASK,PROTOCOL` fills in the first two keys.
EVALUATION: Section = {
    "task": ("folder", ANY),
    "protocol": ("linear", ANY),
    # Images through the encoder at a time.
    "batch_size": (64, AT_LEAST_1),
    # Side of the test crop in pixels; 0 = what the encoder was made for. Another size is named in the results.
    "image_size": (0, NOT_NEGATIVE),
    # Without an official split: shares of train and validation (the rest is test), drawn `splits` times (Sec. 4.3).
    "train_fraction": (0.7, OPEN_FRACTION),
    "validation_fraction": (0.1, OPEN_FRACTION),
    "splits": (5, AT_LEAST_1),
    # With a train and a test split but no validation: this share of train (Sec. 4.3, Politics).
    "held_out_fraction": (0.1, OPEN_FRACTION),
    # Strengths of the L2 penalty that are tried; the best on validation is reported on test. Not in the paper.
    "l2": (
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        (lambda value: value and all(strength > 0 for strength in value), "one or more numbers above 0"),
    ),
    # L-BFGS iterations at most, for each strength.
    "iterations": (200, AT_LEAST_1),
    # L-BFGS has converged when no entry of the gradient is larger.
    "tolerance": (1e-5, POSITIVE),
    # Threads that decode; 0 = one per core.
    "threads": (0, NOT_NEGATIVE),
    # An image with more pixels is refused before it is decoded.
    "max_image_pixels": (50_000_000, AT_LEAST_1),
    "seed": (0, NOT_NEGATIVE),
}


PRE_TRAINING = {"labels": LABELS, "data": DATA, "model": MODEL, "training": TRAINING, "profile": PROFILE}


def base() -> ConfigDict:
    """Return the config of one pre-training experiment: sections `labels`, `data`, `model`, `training`, `profile`.

    `scripts/label.py` and `scripts/train.py` take the same file. The config is locked: an unknown key is an error.
    """
    return ConfigDict({name: _defaults(section) for name, section in PRE_TRAINING.items()}).lock()


def evaluation() -> ConfigDict:
    """Return the config of one evaluation, locked."""
    return ConfigDict(_defaults(EVALUATION)).lock()


def _defaults(section: Section) -> dict[str, Any]:
    return {
        # A placeholder is a reference: each config gets its own.
        key: config_dict.placeholder(int) if default is OPTIONAL_INT else default
        for key, (default, _) in section.items()
    }


def validate(config: ConfigDict) -> None:
    """Check every value of a config made by `base()` or `evaluation()`.

    Raises:
        UserError: a value breaks its rule, or a key is unknown or missing. The message names the first such key.
    """
    rules = _rules(PRE_TRAINING if "training" in config else EVALUATION)
    for key, value in flat(config).items():
        if key not in rules:
            raise UserError(f"The config has an unknown key {key}: see vise_jax/config.py for the keys there are.")
        allowed, words = rules[key]
        if not allowed(value):
            raise UserError(f"The config key {key} is {value!r}, but must be {words}.")
    missing = sorted(rules.keys() - flat(config).keys())
    if missing:
        raise UserError(f"The config lacks the key {missing[0]}: start it from vise_jax.config.base().")
    if "labels" in config and config.labels.cluster_fraction + config.labels.validation_fraction >= 1:
        raise UserError(
            "labels.cluster_fraction and labels.validation_fraction leave nothing to train on: lower one of them."
        )
    if "labels" in config and (config.labels.comment_encoder == "lsa") == bool(config.labels.vectors):
        raise UserError(
            f"The config key labels.vectors is {config.labels.vectors!r} with labels.comment_encoder="
            f"{config.labels.comment_encoder!r}: word_vectors needs a file and static a folder, lsa takes none."
        )
    if "train_fraction" in config and config.train_fraction + config.validation_fraction >= 1:
        raise UserError("train_fraction and validation_fraction leave nothing for test: lower one of them.")


def _rules(sections: Any) -> dict[str, Rule]:
    if sections is EVALUATION:
        return {key: rule for key, (_, rule) in EVALUATION.items()}
    return {f"{name}.{key}": rule for name, section in sections.items() for key, (_, rule) in section.items()}


def flat(config: ConfigDict) -> dict[str, Any]:
    """Return all values by dotted key, e.g. `training.seed`."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            values.update({f"{key}.{inner}": leaf for inner, leaf in flat(value).items()})
        else:
            values[key] = value
    return values
