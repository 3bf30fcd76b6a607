r"""Find the images whose features are nearest to those of a query image, by the cosine, exactly.

The features are a file that extract.py wrote with the same encoder. With --images, the directory, .zip or .csv file
that they were made from, and --output, the pictures are shown on a page that needs no network.

Example:
    python scripts/extract.py --encoder RUN/encoder --images PHOTOS --output features.npz
    python scripts/neighbors.py --encoder RUN/encoder --features features.npz --query photo.jpg --k 10
    python scripts/neighbors.py --encoder RUN/encoder --features features.npz --query photo.jpg \
        --images PHOTOS --output neighbors.html
"""

from absl import flags

from vise_jax import cli, config
from vise_jax.errors import UserError

_DEFAULTS = config.evaluation()
_ENCODER = flags.DEFINE_string("encoder", None, "The directory of the encoder that the features are of.")
_FEATURES = flags.DEFINE_string("features", None, "The .npz or .parquet file that extract.py wrote.")
_QUERY = flags.DEFINE_string("query", None, "An image file.")
_K = flags.DEFINE_integer("k", 10, "How many neighbors.", lower_bound=1)
_IMAGES = flags.DEFINE_string("images", None, "For --output: what extract.py was given as --images.")
_OUTPUT = flags.DEFINE_string("output", None, "The .html file to write the pictures to, with --images.")


def main(words: list[str]) -> None:
    """Find the neighbors, print them, and write the page if requested."""
    cli.no_words(words)
    directory, path = cli.location(_ENCODER), cli.location(_FEATURES)
    query_path = cli.location(_QUERY)
    if bool(_IMAGES.value) != bool(_OUTPUT.value):
        raise UserError("--images and --output go together: give both, or none to print the neighbors only.")
    from vise_jax.data import datasets
    from vise_jax.encoder import Encoder
    from vise_jax.inference import neighbors
    from vise_jax.reporting import neighbors as page

    with datasets.on_disk(query_path) as query_copy:
        query = datasets.open_unlabeled(query_copy)
        encoder = Encoder.load(directory)
        ranked = neighbors.nearest(encoder, path, query, _K.value, _DEFAULTS.max_image_pixels)
        if _OUTPUT.value:
            output = cli.location(_OUTPUT)
            with datasets.on_disk(cli.location(_IMAGES)) as copy:
                images = datasets.open_unlabeled(copy)
                page.write(encoder, query, ranked, images, output, _DEFAULTS.max_image_pixels)
    page.show(ranked)
    if _OUTPUT.value:
        print(f"written: {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main, __doc__)
