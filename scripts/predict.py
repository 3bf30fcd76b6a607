r"""Predict how people would react to images: the most probable comment clusters, and each reaction button's fraction.

The output has a line of JSON for each image, ordered by path; the page beside it (.html) shows the pictures with it and
needs no network. Clusters are described by the words and emoji that tell them from the others. The encoder is one that
train.py wrote (its heads are needed), and the labeler the one that its shards were labeled with. An image that can't
be read has a line with `error`. Run the same command again after an interruption: it resumes.

Example:
    python scripts/predict.py --encoder RUN/encoder --labeler LABELER --images PHOTOS --output predictions.jsonl
    head -1 predictions.jsonl | python -m json.tool
"""

from absl import flags

from vise_jax import cli, config

_DEFAULTS = config.evaluation()
_ENCODER = flags.DEFINE_string("encoder", None, "The directory of an encoder that train.py wrote.")
_LABELER = flags.DEFINE_string("labeler", None, "The labeler that label.py fit wrote.")
_IMAGES = flags.DEFINE_string(
    "images", None, "A directory of images, a .zip, a .csv file with a column `image`, or one image."
)
_OUTPUT = flags.DEFINE_string("output", None, "The .jsonl file to write; the page is written beside it, as .html.")
_TOP = flags.DEFINE_integer("top", 5, "Comment clusters to name for each image.", lower_bound=1)
_ON_PAGE = flags.DEFINE_integer("on_page", 200, "Images on the page at most, the first ones.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", _DEFAULTS.batch_size, "Images through the encoder at a time.", lower_bound=1
)


def main(words: list[str]) -> None:
    """Predict, and print a summary."""
    cli.no_words(words)
    encoder_folder, labeler_folder = cli.location(_ENCODER), cli.location(_LABELER)
    directory, output = cli.location(_IMAGES), cli.location(_OUTPUT)
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.engagement import Labeler
    from vise_jax.reporting import predictions

    with datasets.on_disk(directory) as copy:
        page, count, rejected = predictions.write(
            Encoder.load(encoder_folder),
            Labeler.load(labeler_folder),
            datasets.open_unlabeled(copy),
            output,
            top=_TOP.value,
            on_page=_ON_PAGE.value,
            batch_size=_BATCH_SIZE.value,
            threads=_DEFAULTS.threads,
            max_image_pixels=_DEFAULTS.max_image_pixels,
        )
    print(f"{output}: {count:,} images" + (f", of which {rejected:,} can't be read" if rejected else ""))
    print(f"written: {output} and {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
