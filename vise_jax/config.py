"""Every config key with its default, its rule and its meaning. An experiment is a short diff of `base()`.

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


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


ANY: Rule = lambda value: True, "anything"
POSITIVE: Rule = lambda value: value > 0, "above 0"
AT_LEAST_1: Rule = lambda value: value >= 1, "at least 1"
NOT_NEGATIVE: Rule = lambda value: value >= 0, "at least 0"
FRACTION: Rule = lambda value: 0 <= value <= 1, "between 0 and 1"
OPEN_FRACTION: Rule = lambda value: 0 < value < 1, "above 0 and below 1"
BELOW_1: Rule = _below_one, "at least 0 and below 1"
DISTRIBUTED: Rule = (
    lambda value: value in ("auto", "off") or bool(re.fullmatch(r"[^,]+:\d+,\d+,\d+", value)),
    '"auto", "off" or "HOST:PORT,PROCESSES,INDEX"',
)
PATHS: Rule = lambda value: all(isinstance(path, str) and path for path in value), "paths of directories"
ON_DISK: Rule = lambda value: "://" not in value, "a path on disk"
GRID: Rule = lambda value: value and all(number > 0 for number in value), "one or more numbers above 0"
# The default None of an integer key.
OPTIONAL_INT = object()

LABELS: Section = {
    # Number of comment clusters and of reaction clusters, one K-means each (Sec. 3.1). Not in the paper.
    "comment_clusters": (5000, AT_LEAST_1),
    "reaction_clusters": (128, AT_LEAST_1),
    # Fit fewer clusters, instead of raising an error, if there are fewer distinct points.
    "allow_fewer_clusters": (False, ANY),
    # Fraction of the posts that clusters are fitted on. They are never trained on (Sec. 3.1: 20M of 270M).
    "cluster_fraction": (20 / 270, OPEN_FRACTION),
    # Fraction of the posts that become validation examples, in shards of their own.
    "validation_fraction": (0.0, FRACTION),
    # Fraction of the training posts that become examples. A smaller one gives a subset of a larger one (Fig. 4).
    "train_fraction": (1.0, (lambda value: 0 < value <= 1, "above 0 and at most 1")),
    # Suppress comment clusters with fewer distinct posts than this (k-anonymity).
    "min_posts": (2, AT_LEAST_1),
    # Maximum number of comments sampled from a post (Sec. 3.2).
    "max_comments": (100, AT_LEAST_1),
    # Repair comments whose UTF-8 was decoded as Latin-1, as in the social network's own export. Other comments don't
    # change. The fit reports the number.
    "repair_encoding": (True, ANY),
    # "shared": one set of comment clusters, as the paper. "separate": clusters within languages, which are identified
    # offline. Clusters are divided among languages in proportion to their number of comments. Languages that would get
    # less than one are pooled with comments of unknown language.
    "languages": ("shared", one_of("shared", "separate")),
    # "set": all clusters of a post have equal weight. "count": the weight is the number of comments in the cluster.
    # Not in the paper.
    "label_weights": ("set", one_of("set", "count")),
    # Reaction buttons of phi_R, in the order of its dimensions: names of buttons, emoji, or ratings such as "1" to "5".
    # The paper's five.
    "reactions": (
        ("haha", "sorry", "angry", "wow", "love"),
        (
            lambda value: len(value) > 1 and all(isinstance(name, str) and name.strip() for name in value),
            "two or more names",
        ),
    ),
    # What to do with a button that is neither in `reactions` nor one of Facebook's others (those are ignored): "reject"
    # the post, or "ignore" the button.
    "other_reactions": ("reject", one_of("reject", "ignore")),
    # Leave the reactions of posts with fewer reactions than this unlabeled: their profile is mostly chance. Not in the
    # paper.
    "min_reactions": (1, AT_LEAST_1),
    # Token vectors of phi_C; the paper's are not public. "lsa": truncated SVD of the comments. "word_vectors": a file.
    # "static": a model2vec directory, with its tokenizer. "transformer": sentence embeddings of a text encoder, the
    # output of `convert.py`; the paper expects better text representations to help (Sec. 5.2).
    "comment_encoder": ("lsa", one_of("lsa", "word_vectors", "static", "transformer")),
    # The file (word2vec, GloVe or fastText .vec, plain or gzipped) or directory of the vectors; empty for "lsa".
    "vectors": ("", ON_DISK),
    # "idf": weight tokens by inverse document frequency. "none": equal weights, as model2vec. Not in the paper.
    "token_weights": ("idf", one_of("idf", "none")),
    # Number of LSA components.
    "comment_dim": (256, AT_LEAST_1),
    # Minimum document frequency of a vocabulary token, and the maximum size of the vocabulary.
    "min_comment_count": (5, AT_LEAST_1),
    "max_vocabulary": (50_000, AT_LEAST_1),
    # Maximum number of comments and of reaction profiles to fit on, a uniform sample of the cluster split.
    "max_fit_comments": (1_000_000, AT_LEAST_1),
    "max_fit_reactions": (1_000_000, AT_LEAST_1),
    # Maximum number of K-means iterations, and the relative decrease of the inertia at which it stops earlier.
    "kmeans_iterations": (25, AT_LEAST_1),
    "kmeans_tolerance": (1e-4, NOT_NEGATIVE),
    # Points per K-means mini-batch; 0 = Lloyd's algorithm on all points.
    "kmeans_batch": (0, NOT_NEGATIVE),
    # File with the secret salt of the hashed post ids; `label.py fit` creates it if it doesn't exist. "": derive the
    # salt from `seed`, which anyone can repeat. Set it where ids must stay unlinkable.
    "salt_file": ("", ON_DISK),
    # Bounds that keep one post from filling the memory; real data never meets them. Longer lines, and members of tar
    # files, are skipped unread. Longer comments are cut; comments beyond that number of a post are left out.
    "max_line_bytes": (64 * 2**20, AT_LEAST_1),
    "max_comment_characters": (10_000, AT_LEAST_1),
    "max_post_comments": (100_000, AT_LEAST_1),
    # Reject larger images before they are decoded, by the bytes of their file and by their pixels.
    "max_image_bytes": (64 * 2**20, AT_LEAST_1),
    "max_image_pixels": (50_000_000, AT_LEAST_1),
    # Shrink images whose shorter side is longer than this many pixels to it, as JPEG; 0 = keep every image's pixels.
    # The smallest crops of 224 pixels (area 0.08) lose detail below 224 / sqrt(0.08) = 792. Not in the paper.
    "image_side": (0, (lambda value: value == 0 or value >= 8, "0, or at least 8")),
    # JPEG quality of images that are transcoded: shrunk ones, WebP, GIF, BMP, TIFF, AVIF, and JPEG files in CMYK.
    "transcode_quality": (90, (lambda value: 1 <= value <= 95, "between 1 and 95")),
    # Size of a shard.
    "shard_megabytes": (128.0, POSITIVE),
    # Size of an input split: a range of a .jsonl or .parquet file that one worker labels.
    "split_megabytes": (128.0, POSITIVE),
    # Directories that symbolic links to images may point into, beside that of the posts file.
    "link_roots": ((), PATHS),
    # Stop the job when a larger fraction of an input split's posts is malformed or has a corrupt image.
    "max_rejected_fraction": (0.5, FRACTION),
    # Number of posts of an input split from which `max_rejected_fraction` applies.
    "min_posts_to_stop": (100, NOT_NEGATIVE),
    # Examples with near-duplicate images, of the training and the validation split. "keep": all of them, as the paper.
    # "drop": one of each group. "merge": one with the labels of all.
    "duplicates": ("keep", one_of("keep", "drop", "merge")),
    # Largest number of differing bits, of 64, between the perceptual hashes of near-duplicates, also of the images in
    # an exclusion list. On photos, 4 finds recompressed and scaled ones, 6 also most that are cropped by 5 percent.
    "duplicate_distance": (4, (lambda value: 0 <= value <= 8, "between 0 and 8")),
    "seed": (0, NOT_NEGATIVE),
}

DATA: Section = {
    # Directory of engagement shards, the output of `label.py run`.
    "shards": ("", ANY),
    # Side of the square crop, in pixels.
    "image_size": (224, (lambda value: value >= 8, "at least 8")),
    # Random resized crop: range of its area, as a fraction of the image's, and of its aspect ratio. Not in the paper.
    "crop_area": ((0.08, 1.0), (lambda value: _is_range(value) and value[1] <= 1, "two fractions, the smaller first")),
    "crop_ratio": ((3 / 4, 4 / 3), (_is_range, "two ratios, the smaller first")),
    # Antialias crops that shrink, as torchvision and Pillow do. Off is faster, and the default of tf.image.
    "antialias": (True, ANY),
    # Decode a JPEG at a half, quarter or eighth of its size where the crop stays at least image_size large: faster for
    # photos of several megapixels. Not in the paper.
    "scaled_decoding": (False, ANY),
    # Horizontal flips, on the device.
    "flip": (True, ANY),
    # Shuffling, see `vise_jax.data.epoch_order`. A batch-norm group of 32 is drawn from shuffle_window / shuffle_block
    # random places of shuffle_shards shards.
    "shuffle_shards": (256, AT_LEAST_1),
    # Consecutive records that are read together.
    "shuffle_block": (8, AT_LEAST_1),
    # Number of interleave slots. Each slot fills consecutive rows of a batch from its own shuffle window. Use at least
    # the number of processes, so that each reads record blocks of its own. Keep `bn_group` at most batch size /
    # shuffle_slots.
    "shuffle_slots": (8, AT_LEAST_1),
    # Examples of a slot that are shuffled together. A process holds two windows of its slots in memory: 2 GB with all 8
    # slots and images of 60 KB.
    "shuffle_window": (2048, AT_LEAST_1),
    # Decoding threads per process; 0 = one per available CPU.
    "threads": (0, NOT_NEGATIVE),
    # A corrupt example is replaced by a black image without labels, and named in corrupt_examples.jsonl. The run stops
    # when these are a larger fraction of all training examples.
    "max_corrupt_fraction": (0.01, FRACTION),
}

MODEL: Section = {
    # A name of `vise_jax.models.ENCODERS`.
    "name": ("resnet50", ANY),
    # "imagenet": 7x7 stride 2 and max-pooling; "cifar": 3x3 stride 1, for images of 32 to 64 pixels.
    "stem": ("imagenet", one_of("imagenet", "cifar")),
    # Channels of the first stage.
    "width": (64, AT_LEAST_1),
    # Initialize the last batch norm of each block to zero, so that blocks start as the identity. Not in the paper.
    "zero_init_last_bn": (True, ANY),
    # Examples that share batch statistics; 0 = the whole batch. None = one group per device and microbatch, as per-GPU
    # batch norm. A resumed run keeps its group size, also on another number of devices.
    "bn_group": (OPTIONAL_INT, (lambda value: value is None or value >= 0, "None, or at least 0")),
    "bn_momentum": (0.9, FRACTION),
    "bn_epsilon": (1e-5, POSITIVE),
    # dtype of activations and matrix products. Parameters, statistics, reductions and the loss stay float32. "auto":
    # bfloat16 on accelerators, float32 on CPUs.
    "dtype": ("auto", one_of("auto", "float32", "bfloat16")),
    # Engagement to predict, one linear head each (Table 3 ablates either).
    "heads": (
        ("comments", "reactions"),
        (
            lambda value: value and len(set(value)) == len(value) and set(value) <= {"comments", "reactions"},
            '("comments", "reactions") or one of the two',
        ),
    ),
}

TRAINING: Section = {
    # Global batch size, over all devices of all processes (Sec. 3.3).
    "batch_size": (1536, AT_LEAST_1),
    # Gradient-accumulation steps per device. The gradient equals that of the full batch. A microbatch must hold whole
    # batch-norm groups.
    "microbatches": (1, AT_LEAST_1),
    # Encoder stages (1 to 4) to rematerialize in the backward pass.
    "remat": ((), (lambda value: set(value) <= {1, 2, 3, 4}, "stage numbers, 1 to 4")),
    # Epochs (the names of the released files say 10 for VisE-250M and 100 for VisE-1.2M).
    "epochs": (10.0, POSITIVE),
    # Number of steps, overriding `epochs`; None = derive it from `epochs`.
    "steps": (OPTIONAL_INT, (lambda value: value is None or value > 0, "None, or at least 1")),
    # "sgd", or "adamw" (not the paper's). Not in the paper's main text, nor are the next nine.
    "optimizer": ("sgd", one_of("sgd", "adamw")),
    # Peak learning rate per 256 images, scaled linearly with the batch size.
    "learning_rate": (0.1, POSITIVE),
    # Momentum of SGD.
    "momentum": (0.9, BELOW_1),
    # Betas and epsilon of AdamW.
    "adam_betas": (
        (0.9, 0.999),
        (lambda value: len(value) == 2 and all(map(_below_one, value)), "two numbers, each at least 0 and below 1"),
    ),
    "adam_epsilon": (1e-8, POSITIVE),
    # Weight decay of kernels. Biases and batch-norm parameters don't decay.
    "weight_decay": (1e-4, NOT_NEGATIVE),
    # Fraction of the steps with linear warm-up.
    "warmup_fraction": (0.05, FRACTION),
    # "cosine" to 0, "constant", or "step": `decays` drops by `decay_factor` split the run into `decays + 1` equal
    # intervals (Mahajan et al. 2018).
    "schedule": ("cosine", one_of("cosine", "step", "constant")),
    "decays": (10, AT_LEAST_1),
    "decay_factor": (0.5, OPEN_FRACTION),
    # Encoder directory to initialize from, without its heads. Ignored when the run has a checkpoint to resume from.
    "init_from": ("", ANY),
    # Steps between checkpoints, and the number of newest checkpoints to keep.
    "checkpoint_every": (5000, AT_LEAST_1),
    "keep_checkpoints": (3, AT_LEAST_1),
    # Minutes between checkpoints, in addition; 0 = off.
    "checkpoint_minutes": (0.0, NOT_NEGATIVE),
    # Steps between records of metrics.jsonl.
    "log_every": (10, AT_LEAST_1),
    # Steps between evaluations on the validation shards and the labeled images of `probe`; 0 = never.
    "evaluate_every": (5000, NOT_NEGATIVE),
    # Labeled images (as --data of evaluate.py) for the kNN accuracy during training; "" for none.
    "probe": ("", ANY),
    # Processes of the run. "auto": detected from Slurm, Kubernetes, Cloud TPU or Open MPI. "off": one. Explicitly:
    # "HOST:PORT,PROCESSES,INDEX".
    "distributed": ("auto", DISTRIBUTED),
    # Timeout after which a silent process counts as dead and the others exit.
    "heartbeat_seconds": (100, AT_LEAST_1),
    "seed": (0, NOT_NEGATIVE),
}

PROFILE: Section = {
    # First and last step of the profiler trace in RUN/profile; () = no trace.
    "steps": (
        (),
        (
            lambda value: (
                len(value) == 0 or (len(value) == 2 and all(map(_is_positive_int, value)) and value[0] <= value[1])
            ),
            "two step numbers in increasing order, or ()",
        ),
    ),
}

# One evaluation; `configs/eval.py:TASK,PROTOCOL[,SETTING]` fills in the first three keys.
EVALUATION: Section = {
    "task": ("folder", ANY),
    "protocol": ("linear", ANY),
    # Modalities, see `vise_jax.evaluation.tasks.SETTINGS`; "" = the task's default.
    "setting": ("", ANY),
    # Batch size of feature extraction.
    "batch_size": (64, AT_LEAST_1),
    # Side of the test crop in pixels; 0 = the encoder's own. Another size is recorded in the result.
    "image_size": (0, NOT_NEGATIVE),
    # Texts are truncated to this number of tokens, or to the text encoder's if that is smaller.
    "max_tokens": (512, AT_LEAST_1),
    # Without an official split: fractions of train and validation (the rest is test), drawn `splits` times (Sec. 4.3).
    "train_fraction": (0.7, OPEN_FRACTION),
    "validation_fraction": (0.1, OPEN_FRACTION),
    "splits": (5, AT_LEAST_1),
    # With official train and test splits only: fraction of train to validate on (Sec. 4.3, Politics).
    "held_out_fraction": (0.1, OPEN_FRACTION),
    # Decoding threads; 0 = one per available CPU.
    "threads": (0, NOT_NEGATIVE),
    # Bounds that keep one file from filling the memory; real data never meets them. Refuse images with more bytes (also
    # unpacked from an archive) or pixels before they are decoded, and archives with more entries (about 1 KB each).
    "max_image_bytes": (256 * 2**20, AT_LEAST_1),
    "max_image_pixels": (50_000_000, AT_LEAST_1),
    "max_archive_entries": (2_000_000, AT_LEAST_1),
    # Images that can't be decoded are left out and counted in the result. A larger fraction of them is an error.
    "max_corrupt_fraction": (0.0, FRACTION),
    # Directories that symbolic links to images may point into, beside that of the dataset.
    "link_roots": ((), PATHS),
    # With --leak-check: largest number of differing bits, of 64, between the perceptual hashes of near-duplicates; and
    # whether evaluation images with a near-duplicate in the shards are left out.
    "leak_distance": (4, (lambda value: 0 <= value <= 64, "between 0 and 64")),
    "leave_out_leaks": (False, ANY),
    # Seed of the first split, of random encoders, and of heads and batches of the fine-tuned protocol.
    "seed": (0, NOT_NEGATIVE),
}

LINEAR: Section = {
    # Grid of L2 penalties. The best on validation is reported on test. Not in the paper, nor are the next two.
    "l2": ((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), GRID),
    # Maximum number of L-BFGS iterations per penalty.
    "iterations": (500, AT_LEAST_1),
    # L-BFGS has converged when its next step is expected to reduce the objective by at most this fraction.
    "tolerance": (1e-6, POSITIVE),
}

KNN: Section = {
    # Numbers of neighbors; the best on validation is reported on test.
    "k": ((1, 5, 20, 50, 200), (lambda value: value and all(map(_is_positive_int, value)), "integers of at least 1")),
    # A neighbor of cosine similarity s has exp(s / temperature) votes (Wu et al. 2018).
    "temperature": (0.07, POSITIVE),
}

LOWSHOT: Section = {
    # Numbers of training examples per class.
    "shots": ((1, 2, 4, 8, 16), (lambda value: value and all(map(_is_positive_int, value)), "integers of at least 1")),
    # Number of draws of these examples.
    "draws": (5, AT_LEAST_1),
    # Grid of L2 penalties of the ridge regression, for features of mean variance 1.
    "l2": ((1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0), GRID),
}

FINETUNE: Section = {
    # Grids of the peak learning rate per 256 examples and of the weight decay. Not in the paper, nor are the next
    # eight.
    "learning_rates": ((0.01, 0.1), GRID),
    "weight_decays": ((1e-4, 1e-3), (lambda value: value and min(value) >= 0, "one or more numbers of at least 0")),
    # Batch size over all devices.
    "batch_size": (64, AT_LEAST_1),
    "epochs": (30.0, POSITIVE),
    # Momentum of SGD.
    "momentum": (0.9, BELOW_1),
    # Fraction of the steps with linear warm-up; then cosine to 0.
    "warmup_fraction": (0.05, FRACTION),
    # "all": encoders and head train. "head": the encoders are frozen.
    "trainable": ("all", one_of("all", "head")),
    # "train": normalize by the batch and update running statistics. "frozen": running statistics and affines stay.
    "batch_norm": ("train", one_of("train", "frozen")),
    # Initial weights of the head, batches and crops are drawn this many times, with the seeds `seed`, `seed` + 1, …
    "seeds": (1, AT_LEAST_1),
    # Random resized crop and horizontal flip, as torchvision's; "center" for the center crop without flips.
    "augment": ("crop_flip", one_of("crop_flip", "flip", "center")),
    "crop_area": ((0.08, 1.0), (lambda value: _is_range(value) and value[1] <= 1, "two fractions, the smaller first")),
    "crop_ratio": ((3 / 4, 4 / 3), (_is_range, "two ratios, the smaller first")),
    # Write the reported weights beside the result, as an encoder with a head `class`; in the setting "image" only.
    "keep_weights": (False, ANY),
    # Epochs between evaluations on validation; the weights that are best there are tested.
    "evaluate_every": (1.0, POSITIVE),
    # Steps between checkpoints, from which an interrupted run resumes.
    "checkpoint_every": (500, AT_LEAST_1),
}

# Sections of the protocols.
PROTOCOLS = {"linear": LINEAR, "knn": KNN, "lowshot": LOWSHOT, "finetune": FINETUNE}


PRE_TRAINING = {"labels": LABELS, "data": DATA, "model": MODEL, "training": TRAINING, "profile": PROFILE}


def base() -> ConfigDict:
    """Return the config of one pre-training experiment: sections `labels`, `data`, `model`, `training`, `profile`.

    `scripts/label.py` and `scripts/train.py` take the same file. The config is locked: an unknown key is an error.
    """
    return ConfigDict({name: _defaults(section) for name, section in PRE_TRAINING.items()}).lock()


def evaluation() -> ConfigDict:
    """Return the config of one evaluation, with a section for each protocol, locked."""
    sections = {name: _defaults(section) for name, section in PROTOCOLS.items()}
    return ConfigDict(_defaults(EVALUATION) | sections).lock()


def _defaults(section: Section) -> dict[str, Any]:
    return {
        # A placeholder is a reference: each config gets its own.
        key: config_dict.placeholder(int) if default is OPTIONAL_INT else default
        for key, (default, _) in section.items()
    }


def validate(config: ConfigDict, like: Callable[[], ConfigDict] | None = None) -> None:
    """Check every value of a config made by `base()` or `evaluation()`.

    Args:
        config: the config.
        like: the function that it has to be made by; None = either.

    Raises:
        UserError: a value breaks its rule, or a key is unknown or missing, the first of which is named; or it is the
            config of another kind.
    """
    if like is base and "training" not in config:
        raise UserError(
            "The config is one of an evaluation, for evaluate.py: give one of pre-training, e.g. configs/demo.py."
        )
    if like is evaluation and "training" in config:
        raise UserError(
            "The config is one of pre-training, for train.py and label.py: give configs/eval.py:TASK,PROTOCOL."
        )
    rules = _rules(PRE_TRAINING) if "training" in config else _rules(PROTOCOLS, EVALUATION)
    for key, value in flat(config).items():
        if key not in rules:
            raise UserError(f"The config has an unknown key {key}: see vise_jax/config.py for the keys there are.")
        allowed, words = rules[key]
        if not _holds(allowed, value):
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
            f"{config.labels.comment_encoder!r}: give word_vectors a file, static and transformer a directory, and lsa "
            "nothing."
        )
    if "train_fraction" in config and config.train_fraction + config.validation_fraction >= 1:
        raise UserError("train_fraction and validation_fraction leave nothing for test: lower one of them.")


def _holds(allowed: Callable[[Any], object], value: Any) -> bool:
    try:
        return bool(allowed(value))
    except TypeError:  # an element of another type
        return False


def _rules(sections: dict[str, Section], top: Section | None = None) -> dict[str, Rule]:
    """Return the rule of each dotted key, of sections and of a config's top level."""
    of_sections = {f"{name}.{key}": rule for name, section in sections.items() for key, (_, rule) in section.items()}
    return {key: rule for key, (_, rule) in (top or {}).items()} | of_sections


def flat(config: ConfigDict) -> dict[str, Any]:
    """Return all values by dotted key, e.g. `training.seed`."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            values.update({f"{key}.{inner}": leaf for inner, leaf in flat(value).items()})
        else:
            values[key] = value
    return values
