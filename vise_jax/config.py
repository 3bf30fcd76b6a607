"""Every key, its default and what it means. An experiment is a short diff of `base()`.

"The paper" is Jia et al., ICCV 2021; where a comment says "not in the paper", its main text is silent and the
value is this project's choice.
"""

import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, config_dict

from vise_jax.errors import UserError


def base() -> ConfigDict:
    """The configuration of one pre-training experiment: `labels`, `data`, `model`, `training`, `profile`.

    `scripts/label.py` and `scripts/train.py` take the same file. The result is locked: an unknown key is an error.
    """
    config = ConfigDict()

    labels = config.labels = ConfigDict()
    # Clusters of comments and of reaction profiles, one K-means each (Sec. 3.1). Their number is not in the paper.
    labels.comment_clusters = 5000
    labels.reaction_clusters = 128
    # Fewer clusters than asked for where there are not enough distinct points, instead of an error.
    labels.allow_fewer_clusters = False
    # Share of the posts that only make clusters and are never trained on (Sec. 3.1: 20M of 270M).
    labels.cluster_share = 20 / 270
    # Share of the posts whose examples are kept apart, in shards of their own, to watch training with.
    labels.validation_share = 0.0
    # Share of the training posts that become examples; a smaller share is a subset of a larger one (Fig. 4).
    labels.train_share = 1.0
    # A comment cluster that fewer posts than this made is no label: so few people could be told from it.
    labels.min_posts = 2
    # Comments drawn from a post at most (Sec. 3.2).
    labels.max_comments = 100
    # "set": every cluster among a post's comments weighs the same. "count": as often as it occurs. Not in the paper.
    labels.label_weights = "set"
    # phi_C, the weighted mean of a comment's token vectors; the paper's embeddings are not public. "lsa": truncated
    # SVD of the comments themselves. "word_vectors": a file of them. "static": a model2vec folder, with its tokenizer.
    labels.comment_encoder = "lsa"
    # That file (word2vec, GloVe or fastText .vec, plain or gzipped) or folder; not for LSA.
    labels.vectors = ""
    # "idf": rare tokens weigh more. "none": all weigh the same, as in model2vec's own mean. Not in the paper.
    labels.token_weights = "idf"
    # Dimensions of LSA.
    labels.comment_dim = 256
    # A token is in the vocabulary when this many comments hold it, the most frequent ones first.
    labels.min_comment_count = 5
    labels.max_vocabulary = 50_000
    # Comments that the SVD and K-means are fitted on at most, drawn evenly from the cluster split.
    labels.max_fit_comments = 1_000_000
    labels.max_fit_reactions = 1_000_000
    # Passes over the points, or mini-batches; K-means stops when the inertia falls by a smaller share than tolerance.
    labels.kmeans_iterations = 25
    labels.kmeans_tolerance = 1e-4
    # Points of a mini-batch; 0 = Lloyd's algorithm on all of them.
    labels.kmeans_batch = 0
    # File whose bytes salt the hashes of post ids (splits, and the ids in shards); `label.py fit` makes it where there
    # is none. Without one the salt follows from `seed`, which anyone can repeat: name a file where ids must stay
    # unlinkable, and keep it secret.
    labels.salt_file = ""
    # An image with more pixels is rejected before it is decoded.
    labels.max_image_pixels = 50_000_000
    # A shard is closed when it has grown to this size.
    labels.shard_megabytes = 128.0
    # A .jsonl or .parquet file is worked on in parts of this size, so that several workers can share it.
    labels.part_megabytes = 128.0
    # The job stops when a larger share of a part's posts is malformed or has a broken image.
    labels.max_rejected_share = 0.5
    labels.seed = 0

    data = config.data = ConfigDict()
    # The folder that `label.py run` wrote.
    data.shards = ""
    # Side of the square crop, in pixels.
    data.image_size = 224
    # Random-resized-crop: range of its area, as a share of the image's, and of its aspect ratio. Not in the paper.
    data.crop_area = (0.08, 1.0)
    data.crop_ratio = (3 / 4, 4 / 3)
    # Low-pass filter when a crop shrinks (as Pillow does); off is faster, and what tf.image does by default.
    data.antialias = False
    # Horizontal flips, on the device.
    data.flip = True
    # Shards come in random order, and records are shuffled within groups of this many shards: the window that a batch
    # is drawn from. The processes share a group; each holds its part of two to three groups in memory (3 GB with one
    # process and shards of 128 MB). At least as many as there are processes, so that each reads shards of its own.
    data.shuffle_shards = 8
    # Threads that decode, of each process; 0 = one per core.
    data.threads = 0
    # Examples with a damaged record or image are passed over and named in bad_records.jsonl; the run stops when they
    # are a larger share of all training examples.
    data.max_bad_share = 0.01

    model = config.model = ConfigDict()
    # A name of `vise_jax.models.ENCODERS`.
    model.name = "resnet50"
    # "imagenet": 7x7 stride 2 and max-pooling; "cifar": 3x3 stride 1, for images of 32 to 64 pixels.
    model.stem = "imagenet"
    # Channels of the first stage.
    model.width = 64
    # The last batch norm of each block starts at zero, so that blocks start as the identity. Not in the paper.
    model.zero_init_last_bn = True
    # Examples that share batch statistics; 0 = the whole batch. None = one group per device (and microbatch), as
    # per-GPU batch norm; a run keeps the groups that it began with, also on another number of devices.
    model.bn_group = config_dict.placeholder(int)
    model.bn_momentum = 0.9
    model.bn_epsilon = 1e-5
    # Type of activations and products; parameters, statistics, reductions and the loss stay float32. "auto": bfloat16
    # on accelerators, float32 on CPUs.
    model.dtype = "auto"
    # Which engagement is predicted, one linear head each (Table 3 leaves one out).
    model.heads = ("comments", "reactions")

    training = config.training = ConfigDict()
    # Images in a step, over all devices of all processes (Sec. 3.3).
    training.batch_size = 1536
    # Parts that a device takes its share of the batch in, one after the other, to need less memory; the result is the
    # large batch's. Batch norm's groups must fit into a part.
    training.microbatches = 1
    # Stages of the encoder (1 to 4) whose activations are computed again in the backward pass instead of kept.
    training.remat = ()
    # Passes over the shards (the released files' names say 10 for VisE-250M and 100 for VisE-1.2M).
    training.epochs = 10.0
    # Steps instead of epochs; None = as `epochs` says.
    training.steps = config_dict.placeholder(int)
    # "sgd", or "adamw" (not the paper's). Not in the paper's main text, nor are the next nine.
    training.optimizer = "sgd"
    # Peak rate per 256 images, scaled linearly with the batch.
    training.learning_rate = 0.1
    # Of SGD.
    training.momentum = 0.9
    # Of AdamW: decay of the two moments, and what is added to the root of the second.
    training.adam_betas = (0.9, 0.999)
    training.adam_epsilon = 1e-8
    # Not on biases and batch norm.
    training.weight_decay = 1e-4
    # Share of the steps in which the rate rises linearly, before the schedule lowers it.
    training.warmup_share = 0.05
    # "cosine" to 0; "step": times `decay_factor` at each of `decays` equal intervals (Mahajan et al. 2018 halve it);
    # "constant".
    training.schedule = "cosine"
    training.decays = 10
    training.decay_factor = 0.5
    # Folder of an encoder to start from; its heads, if it has any, are left behind. A run that has a checkpoint goes on
    # from there instead.
    training.init_from = ""
    # Steps between checkpoints, and how many of the newest are kept.
    training.checkpoint_every = 5000
    training.keep_checkpoints = 3
    # Minutes after which a checkpoint is due even so; 0 = never.
    training.checkpoint_minutes = 0.0
    # Keep the checkpoint with the lowest validation loss, too, in the folder `best`.
    training.keep_best = True
    # Steps between lines of metrics.jsonl.
    training.log_every = 10
    # Steps between evaluations on the validation shards and the labeled images of `probe`; 0 = never.
    training.evaluate_every = 5000
    # Labeled images (a folder of class folders, a .zip or a .csv, as for evaluate.py) whose nearest neighbors in the
    # features are watched; "" for none.
    training.probe = ""
    # "auto": several processes where Slurm, Kubernetes, Cloud TPU or Open MPI says so; "off"; or the coordinator, the
    # number of processes and which one this is: "HOST:PORT,PROCESSES,INDEX".
    training.distributed = "auto"
    # A process that is not heard of for so long is taken for dead, and the others end.
    training.heartbeat_seconds = 100
    training.seed = 0

    profile = config.profile = ConfigDict()
    # First and last step of a trace in RUN/profile, for `tensorboard` or xprof; () for none.
    profile.steps = ()

    return config.lock()


def evaluation() -> ConfigDict:
    """The configuration of one evaluation; `configs/eval.py:TASK,PROTOCOL` fills in the first two keys."""
    config = ConfigDict()
    config.task = "folder"
    config.protocol = "linear"
    # Images through the encoder at a time.
    config.batch_size = 64
    # Side of the test crop in pixels; 0 = what the encoder was made for. Another size is named in the results.
    config.image_size = 0
    # Without an official split: shares of train and validation (the rest is test), drawn `splits` times (Sec. 4.3).
    config.train_share = 0.7
    config.validation_share = 0.1
    config.splits = 5
    # With a train and a test split but no validation: this share of train (Sec. 4.3, Politics).
    config.held_out_share = 0.1
    # Strengths of the L2 penalty that are tried; the best on validation is reported on test. Not in the paper.
    config.l2 = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    # L-BFGS iterations at most, for each strength.
    config.iterations = 200
    # L-BFGS has converged when no entry of the gradient is larger.
    config.tolerance = 1e-5
    # Threads that decode; 0 = one per core.
    config.threads = 0
    # An image with more pixels is refused before it is decoded.
    config.max_image_pixels = 50_000_000
    config.seed = 0
    return config.lock()


def _positive(value: Any) -> bool:
    return value > 0


def _not_negative(value: Any) -> bool:
    return value >= 0


def _share(value: Any) -> bool:
    return 0 <= value <= 1


def _inner_share(value: Any) -> bool:
    return 0 < value < 1


def _below_one(value: Any) -> bool:
    return 0 <= value < 1


def _range(value: Any) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1]


def _one_of(*choices: str) -> Callable[[Any], bool]:
    return lambda value: value in choices


# section.key → (what is allowed, in words)
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "labels.comment_clusters": (_positive, "at least 1"),
    "labels.reaction_clusters": (_positive, "at least 1"),
    "labels.cluster_share": (_inner_share, "between 0 and 1, neither of them"),
    "labels.validation_share": (_share, "between 0 and 1"),
    "labels.train_share": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "labels.min_posts": (_positive, "at least 1"),
    "labels.max_comments": (_positive, "at least 1"),
    "labels.label_weights": (_one_of("set", "count"), '"set" or "count"'),
    "labels.comment_encoder": (_one_of("lsa", "word_vectors", "static"), '"lsa", "word_vectors" or "static"'),
    "labels.token_weights": (_one_of("idf", "none"), '"idf" or "none"'),
    "labels.comment_dim": (_positive, "at least 1"),
    "labels.min_comment_count": (_positive, "at least 1"),
    "labels.max_vocabulary": (_positive, "at least 1"),
    "labels.max_fit_comments": (_positive, "at least 1"),
    "labels.max_fit_reactions": (_positive, "at least 1"),
    "labels.kmeans_iterations": (_positive, "at least 1"),
    "labels.kmeans_tolerance": (_not_negative, "at least 0"),
    "labels.kmeans_batch": (_not_negative, "at least 0"),
    "labels.max_image_pixels": (_positive, "at least 1"),
    "labels.shard_megabytes": (_positive, "above 0"),
    "labels.part_megabytes": (_positive, "above 0"),
    "labels.max_rejected_share": (_share, "between 0 and 1"),
    "labels.seed": (_not_negative, "at least 0"),
    "data.image_size": (lambda value: value >= 8, "at least 8"),
    "data.crop_area": (lambda value: _range(value) and value[1] <= 1, "two shares, the smaller first"),
    "data.crop_ratio": (_range, "two ratios, the smaller first"),
    "data.shuffle_shards": (_positive, "at least 1"),
    "data.threads": (_not_negative, "at least 0"),
    "data.max_bad_share": (_share, "between 0 and 1"),
    "model.stem": (_one_of("imagenet", "cifar"), '"imagenet" or "cifar"'),
    "model.width": (_positive, "at least 1"),
    "model.bn_group": (lambda value: value is None or value >= 0, "None, or at least 0"),
    "model.bn_momentum": (_share, "between 0 and 1"),
    "model.bn_epsilon": (_positive, "above 0"),
    "model.dtype": (_one_of("auto", "float32", "bfloat16"), '"auto", "float32" or "bfloat16"'),
    "model.heads": (
        lambda value: value and len(set(value)) == len(value) and set(value) <= {"comments", "reactions"},
        '("comments", "reactions") or one of the two',
    ),
    "training.batch_size": (_positive, "at least 1"),
    "training.microbatches": (_positive, "at least 1"),
    "training.remat": (lambda value: set(value) <= {1, 2, 3, 4}, "numbers of stages, 1 to 4"),
    "training.epochs": (_positive, "above 0"),
    "training.steps": (lambda value: value is None or value > 0, "None, or at least 1"),
    "training.optimizer": (_one_of("sgd", "adamw"), '"sgd" or "adamw"'),
    "training.learning_rate": (_positive, "above 0"),
    "training.momentum": (_below_one, "at least 0 and below 1"),
    "training.adam_betas": (
        lambda value: len(value) == 2 and all(map(_below_one, value)),
        "two numbers, each at least 0 and below 1",
    ),
    "training.adam_epsilon": (_positive, "above 0"),
    "training.weight_decay": (_not_negative, "at least 0"),
    "training.warmup_share": (_share, "between 0 and 1"),
    "training.schedule": (_one_of("cosine", "step", "constant"), '"cosine", "step" or "constant"'),
    "training.decays": (_positive, "at least 1"),
    "training.decay_factor": (_inner_share, "between 0 and 1, neither of them"),
    "training.checkpoint_every": (_positive, "at least 1"),
    "training.keep_checkpoints": (_positive, "at least 1"),
    "training.checkpoint_minutes": (_not_negative, "at least 0"),
    "training.log_every": (_positive, "at least 1"),
    "training.evaluate_every": (_not_negative, "at least 0"),
    "training.distributed": (
        lambda value: value in ("auto", "off") or bool(re.fullmatch(r"[^,]+:\d+,\d+,\d+", value)),
        '"auto", "off" or "HOST:PORT,PROCESSES,INDEX"',
    ),
    "training.heartbeat_seconds": (_positive, "at least 1"),
    "training.seed": (_not_negative, "at least 0"),
    "profile.steps": (
        lambda value: len(value) == 0 or (len(value) == 2 and 0 < value[0] <= value[1]),
        "two numbers of steps, the first one first, or ()",
    ),
    "batch_size": (_positive, "at least 1"),
    "image_size": (_not_negative, "at least 0"),
    "train_share": (_inner_share, "between 0 and 1, neither of them"),
    "validation_share": (_inner_share, "between 0 and 1, neither of them"),
    "splits": (_positive, "at least 1"),
    "held_out_share": (_inner_share, "between 0 and 1, neither of them"),
    "l2": (lambda value: value and all(strength > 0 for strength in value), "one or more numbers above 0"),
    "iterations": (_positive, "at least 1"),
    "tolerance": (_positive, "above 0"),
    "threads": (_not_negative, "at least 0"),
    "max_image_pixels": (_positive, "at least 1"),
    "seed": (_not_negative, "at least 0"),
}


def validate(config: ConfigDict) -> None:
    """Check every value of a configuration made by `base()` or `evaluation()`.

    Raises:
        UserError: names the first key that is wrong, its value and what is allowed; or a key that nobody knows.
    """
    reference = base() if "training" in config else evaluation()
    for key, value in flat(config).items():
        if key not in flat(reference):
            raise UserError(f"The config has an unknown key {key}: see vise_jax/config.py for the keys there are.")
        allowed, words = _RULES.get(key, (None, ""))
        if allowed and not allowed(value):
            raise UserError(f"The config key {key} is {value!r}, but must be {words}.")
    missing = sorted(flat(reference).keys() - flat(config).keys())
    if missing:
        raise UserError(f"The config lacks the key {missing[0]}: start it from vise_jax.config.base().")
    if "labels" in config and config.labels.cluster_share + config.labels.validation_share >= 1:
        raise UserError("The config keys labels.cluster_share and labels.validation_share leave nothing to train on.")
    if "labels" in config and (config.labels.comment_encoder == "lsa") == bool(config.labels.vectors):
        raise UserError(
            f"The config key labels.vectors is {config.labels.vectors!r} with labels.comment_encoder="
            f"{config.labels.comment_encoder!r}: word_vectors needs a file and static a folder, lsa takes none."
        )
    if "train_share" in config and config.train_share + config.validation_share >= 1:
        raise UserError("The config keys train_share and validation_share leave nothing for test: lower one of them.")


def flat(config: ConfigDict) -> dict[str, Any]:
    """All values by their dotted keys, e.g. `training.seed`."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            values.update({f"{key}.{inner}": found for inner, found in flat(value).items()})
        else:
            values[key] = value
    return values
