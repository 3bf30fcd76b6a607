r"""Write an encoder's features of images to a file, ordered by path: features float32 [N, D], and paths [N].

The output's ending decides: .npz (arrays `features` and `paths`) or .parquet (a row of `path` and `features` for each
image, written part by part, for sets that don't fit into memory). The images are resized and cropped as the encoder
says, and their batches split over all devices. An image that can't be read is left out and listed in the output under
`about`. Run the same command again after an interruption: it resumes, to the same bytes.

Example:
    python scripts/extract.py --encoder RUN/encoder --images PHOTOS --output features.npz
    python scripts/extract.py --encoder RUN/encoder --images photos.csv --output features.parquet
    python -c "import numpy; f = numpy.load('features.npz'); print(f['paths'][0], f['features'].shape)"
"""

from absl import flags

from vise_jax import cli, config

_DEFAULTS = config.evaluation()
_ENCODER = flags.DEFINE_string(
    "encoder", None, "An encoder's directory; random:NAME or random:FOLDER for an untrained one."
)
_IMAGES = flags.DEFINE_string(
    "images", None, "A directory of images, a .zip, a .csv file with a column `image`, or one image."
)
_OUTPUT = flags.DEFINE_string("output", None, "The .npz or .parquet file to write.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", _DEFAULTS.batch_size, "Images through the encoder at a time.", lower_bound=1
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", _DEFAULTS.image_size, "Side of the crop in pixels; 0 = the encoder's own.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", _DEFAULTS.seed, "Seed of the weights of a random: encoder.", lower_bound=0)


def main(words: list[str]) -> None:
    """Extract features, and print a summary."""
    cli.no_words(words)
    source, directory, output = cli.required(_ENCODER), cli.location(_IMAGES), cli.location(_OUTPUT)
    from vise_jax.data import datasets
    from vise_jax.inference import extract

    with datasets.on_disk(directory) as copy:
        images = datasets.open_unlabeled(copy)
        encoder = extract.open_encoder(source, _SEED.value)
        about = extract.export(
            encoder,
            images,
            encoder.preprocessing.at(_IMAGE_SIZE.value),
            output,
            batch_size=_BATCH_SIZE.value,
            threads=_DEFAULTS.threads,
            max_image_pixels=_DEFAULTS.max_image_pixels,
        )
    print(f"{output}: {about['dim']:,} features of each of {about['images']:,} images")
    if about["rejected"]:
        print(f"left out: {len(about['rejected']):,} images, listed with the reason under `about` in the file")


if __name__ == "__main__":
    cli.run(main, __doc__)
