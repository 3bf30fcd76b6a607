r"""Draw the demo corpus: simulated posts with images, comments and reactions, and labeled images to evaluate on.

With --labeler, the corpus exists already, and the agreement of that labeler's comment clusters is printed, with
the topics that the posts hide (normalized mutual information, 0 to 1).

Example:
    python scripts/demo.py --output demo/corpus --posts 4000 --seed 0
    python scripts/demo.py --output demo/corpus --labeler demo/labeler
"""

from absl import flags

from vise_jax import cli

_OUTPUT = flags.DEFINE_string("output", None, "The corpus: a directory to write, or with --labeler one to read.")
_POSTS = flags.DEFINE_integer("posts", 4000, "How many posts.")
_LABELED = flags.DEFINE_integer("labeled", 1200, "How many labeled images for each of the two tasks.")
_SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same corpus.")
_LABELER = flags.DEFINE_string("labeler", None, "A labeler to hold against the corpus' hidden truth.")


def main(words: list[str]) -> None:
    """Write the corpus, or measure a labeler on it."""
    cli.no_words(words)
    output = cli.location(_OUTPUT)
    if _LABELER.value is None:
        from vise_jax.demo.corpus import make_corpus

        corpus = make_corpus(output, posts=_POSTS.value, labeled=_LABELED.value, seed=_SEED.value)
        print(f"{output}: {corpus['posts']:,} simulated posts, fingerprint {corpus['fingerprint'][:12]}.")
    else:
        from vise_jax.engagement import Labeler
        from vise_jax.evaluation import clusters

        agreement = clusters.agreement(output, Labeler.load(cli.location(_LABELER)))
        print(
            "normalized mutual information of comment clusters, per comment: "
            f"{agreement['topic']:.3f} with the hidden topics, {agreement['affect']:.3f} with the hidden affects"
        )


if __name__ == "__main__":
    cli.run(main, __doc__)
