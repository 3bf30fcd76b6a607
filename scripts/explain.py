r"""Show which parts of images speak for the predicted class: class activation maps, as in the paper's Figure 7.

--encoder and --head may be given several times; the maps then stand side by side. A head is the result (.json) of
evaluate.py with the protocol linear, or `clusters`: the comment head of an encoder that train.py wrote. With a result
of the protocol finetune, give the encoder that it left beside it (--config.finetune.keep_weights), RESULT.finetuned-0.
Writes a PNG file per image, and index.html, which needs no network.

EXAMPLE
    python scripts/explain.py --encoder RUN/encoder --head RESULTS/folder-linear-run-photos-1a2b3c4d.json \
        --images PHOTOS --output MAPS
    python scripts/explain.py --encoder RUN/encoder --head clusters --labeler LABELER --images PHOTOS --output MAPS
"""

from absl import flags

from vise_jax import cli, config
from vise_jax.errors import UserError

_DEFAULTS = config.evaluation()
_ENCODER = flags.DEFINE_multi_string("encoder", None, "Directory of an encoder, or random:NAME; once per column.")
_HEAD = flags.DEFINE_multi_string("head", None, "A result of evaluate.py, or clusters; one for all encoders, or each.")
_LABELER = flags.DEFINE_string("labeler", "", "With --head clusters: the labeler, for the words of the clusters.")
_IMAGES = flags.DEFINE_string("images", None, "A directory of images or of class directories, a .zip or a .csv file.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the PNG files and the page.")
_MOST = flags.DEFINE_integer("most", 50, "Number of images, the first ones.", lower_bound=1)
_SPLIT = flags.DEFINE_integer("split", 0, "Which split's head of a result, by its position.", lower_bound=0)


def main(words: list[str]) -> None:
    """Write the maps, and print a summary."""
    cli.no_words(words)
    sources, heads = cli.required(_ENCODER), cli.required(_HEAD)
    directory, output = cli.location(_IMAGES), cli.location(_OUTPUT)
    if len(heads) not in (1, len(sources)):
        raise UserError(f"There are {len(sources)} encoders and {len(heads)} heads: give one head, or one per encoder.")
    if _LABELER.value and "clusters" not in heads:
        raise UserError("--labeler is for --head clusters, whose clusters it names: leave it out.")
    if _SPLIT.present and set(heads) == {"clusters"}:
        raise UserError("--split is for a result as --head, whose classifier of a split it chooses: leave it out.")
    from vise_jax.data import datasets
    from vise_jax.evaluation import explained
    from vise_jax.reporting import explanations

    columns = [
        explained.open_column(source, head, _LABELER.value, _SPLIT.value, _DEFAULTS.seed)
        for source, head in zip(sources, heads * (len(sources) // len(heads)), strict=True)
    ]
    with datasets.on_disk(directory) as copy:
        try:
            images = datasets.open_labeled(copy)
        except UserError:
            images = datasets.open_unlabeled(copy)
        page, count, rejected = explanations.write(
            [explanations.Explained(*column) for column in columns],
            images,
            output,
            most=_MOST.value,
            threads=_DEFAULTS.threads,
            max_image_pixels=_DEFAULTS.max_image_pixels,
        )
    left_out = f", {rejected:,} can't be decoded" if rejected else ""
    print(f"{count:,} of {len(images):,} images explained{left_out}")
    print(f"written: {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
