r"""Draw the demo corpus: simulated posts with images, comments and reactions, and labelled images to evaluate on.

Example:
    python scripts/demo.py --output demo/corpus --posts 4000 --seed 0
"""

from pathlib import Path

from absl import flags

from vise_jax import cli
from vise_jax.data import demo

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_POSTS = flags.DEFINE_integer("posts", 4000, "How many posts.")
_LABELLED = flags.DEFINE_integer("labelled", 1200, "How many labelled images for each of the two tasks.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same corpus.")


def main(words: list[str]) -> None:
    """Write the corpus and say what it holds."""
    cli.no_words(words)
    output = Path(cli.required(_OUTPUT))
    corpus = demo.make_corpus(output, posts=_POSTS.value, labelled=_LABELLED.value, seed=_SEED.value)
    print(f"{output}: {corpus['posts']:,} simulated posts, fingerprint {corpus['fingerprint'][:12]}.")


if __name__ == "__main__":
    cli.run(main, __doc__)
