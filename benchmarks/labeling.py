"""Time how comments become labels (mask, tokens, TF-IDF, LSA, nearest centroid), beside scikit-learn on the same cores.

    python benchmarks/labeling.py --posts 'POSTS/*.jsonl.gz'
    python benchmarks/labeling.py --comments 20000 --rounds 3

Vocabulary, vectors and centroids are fitted once and the same for all. Each variant has its own worker processes, of
one thread each, that have all this in memory before a clock starts; raw text to labels is timed. All variants
take turns, round by round, so that a machine that slows down slows all of them:

- vise_jax: `CommentEncoder.encode` and `kmeans.assign`;
- scikit-learn: TfidfVectorizer with `tokenize(mask(comment))` as its analyzer, TruncatedSVD, KMeans;
- scikit-learn, our fast tokenizer: the same with `tokens.Splitter` as its analyzer.

The messages of --posts are repeated to --comments; without it they are made up. As words that come again are
remembered, what comes once is timed too: each message a single time, by workers that have seen none. The last line is
one JSON object; a ratio above 1 means that this project is ahead of that variant.
"""

import importlib.metadata
import itertools
import json
import multiprocessing
import os
import resource
import string
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parent / "shared"))

import numpy as np
from absl import flags
from measuring import peak_bytes, ratio

from vise_jax import cli, config
from vise_jax.engagement import kmeans
from vise_jax.engagement.comments import SEPARATOR, CommentEncoder, fit_encoder, tokenizer
from vise_jax.errors import UserError
from vise_jax.posts import RejectLog, expand, read
from vise_jax.similarity import unit_rows
from vise_jax.text.masking import mask
from vise_jax.text.tokens import Splitter, tokenize

OURS, PEER, PEER_FAST = "vise_jax", "scikit-learn", "scikit-learn, our fast tokenizer"
VARIANTS = (OURS, PEER, PEER_FAST)
# Comments labeled at a time.
BATCH = 4096
# Workers inherit this.
ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
}
GENERATED = 40_000

QUICK = flags.DEFINE_bool("quick", False, "4,000 comments, 20 clusters, 16 dimensions, 2 rounds: a smoke test.")
POSTS = flags.DEFINE_string("posts", None, "Posts files whose comments are labeled: a glob, or several by commas.")
COMMENTS = flags.DEFINE_integer("comments", None, "How many the messages are repeated to; by default 1,000,000.", 100)
CLUSTERS = flags.DEFINE_integer("clusters", None, "K-means; by default 1,000.", 2)
DIMENSIONS = flags.DEFINE_integer("dimensions", None, "Of LSA; by default 256.", 2)
ROUNDS = flags.DEFINE_integer("rounds", None, "Turns that each variant takes; by default 5.", 1)
WORKERS = flags.DEFINE_integer("workers", 2, "Processes of each variant.", 1)

Label = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Fitted:
    """What all variants share: the encoder and float32 [K, D] centroids."""

    encoder: CommentEncoder
    centroids: np.ndarray


def main(words: list[str]) -> None:
    cli.no_words(words)
    quick = QUICK.value
    comments = COMMENTS.value or (4_000 if quick else 1_000_000)
    rounds = ROUNDS.value or (2 if quick else 5)
    if POSTS.value:
        messages = [
            comment for path in expand(POSTS.value) for post in read(path, RejectLog(path)) for comment in post.comments
        ]
        if not messages:
            raise UserError(f"--posts={POSTS.value} holds no comments: give other posts.")
    else:
        messages = generate(2_000 if quick else GENERATED)
        print(f"--posts is not given: {len(messages):,} messages are made up, of words as frequent as in Zipf's law.")
    fitted = fit(messages, CLUSTERS.value or (20 if quick else 1_000), DIMENSIONS.value or (16 if quick else 256))
    print(
        f"{len(messages):,} messages, {len(fitted.encoder.vocabulary):,} tokens, {fitted.encoder.vectors.shape[1]} "
        f"dimensions, {len(fitted.centroids):,} clusters",
        flush=True,
    )
    os.environ.update(ONE_THREAD)

    few = comments // 10
    peaks = {variant: {few: _peak_of_one_pass(variant, fitted, messages, few)} for variant in VARIANTS}
    crews = {variant: Crew(variant, fitted, messages, WORKERS.value) for variant in VARIANTS}
    try:
        seconds, labels = take_turns(crews, comments, rounds, anew=False)
        for variant, crew in crews.items():
            peaks[variant][comments] = crew.peak_bytes()
        once, _ = take_turns(crews, len(messages), rounds, anew=True)
    finally:
        for crew in crews.values():
            crew.close()

    equal = {variant: float(np.mean(labels[variant] == labels[OURS])) for variant in VARIANTS[1:]}
    ratios = {}
    for variant in VARIANTS:
        speeds = comments / seconds[variant], len(messages) / once[variant]
        print(
            f"{variant}: {np.median(speeds[0]):,.0f} comments/s, {np.median(speeds[1]):,.0f} where each comes once; "
            + ", ".join(f"{peak / 2**20:,.0f} MiB a worker at {count:,}" for count, peak in peaks[variant].items())
        )
        if variant != OURS:
            ratios[variant] = ratio(seconds[variant], seconds[OURS])
            ratios[f"{variant}, each message once"] = ratio(once[variant], once[OURS])
            print(
                f"  vise_jax is {ratios[variant]['median']:.2f} times as fast, "
                f"{ratios[f'{variant}, each message once']['median']:.2f} where each comes once; "
                f"{equal[variant]:.3%} of the labels are equal"
            )
    print(
        json.dumps(
            {
                "benchmark": "labeling",
                "device": "cpu",
                "ratios": ratios,
                "equal_labels": equal,
                "comments": comments,
                "messages": len(messages),
                "made_up": not POSTS.value,
                "vocabulary": len(fitted.encoder.vocabulary),
                "dimensions": fitted.encoder.vectors.shape[1],
                "clusters": len(fitted.centroids),
                "rounds": rounds,
                "workers": WORKERS.value,
                "comments_per_second": {variant: float(np.median(comments / seconds[variant])) for variant in VARIANTS},
                "comments_per_second_once": {
                    variant: float(np.median(len(messages) / once[variant])) for variant in VARIANTS
                },
                "peak_bytes": {
                    variant: {str(count): peak for count, peak in found.items()} for variant, found in peaks.items()
                },
                "versions": {name: importlib.metadata.version(name) for name in ("jax", "scikit-learn", "scipy")},
            }
        )
    )


def generate(count: int) -> list[str]:
    """Generate messages of made-up words, links, mentions, numbers, emoji and hashtags."""
    rng = np.random.default_rng(0)
    letters = string.ascii_lowercase
    extras = ("http://t.co/{}", "@{}", "#{}", "{}!", "{},", "{}.", "{} 😀", "❤️ {}", ":) {}", "{:d}", "{:07d}")
    messages = []
    for _ in range(count):
        words = []
        for rank in rng.zipf(1.35, 1 + rng.poisson(19)):
            number, word = int(min(rank, 10**9)), ""
            while number:
                number, letter = divmod(number, 26)
                word += letters[letter]
            extra = extras[rng.integers(len(extras))] if rng.random() < 0.2 else "{}"
            words.append(extra.format(int(rank) % 10**7 if "d" in extra else word))
        messages.append(" ".join(words))
    return messages


def fit(messages: Sequence[str], clusters: int, dimensions: int) -> Fitted:
    """Fit vocabulary, vectors and centroids on the messages, as the labeler does."""
    labels = config.base().labels
    labels.comment_dim = dimensions
    counts: Counter[str] = Counter()
    rows = tokenizer(labels)(messages)
    for tokens in rows:
        counts.update(set(tokens))
    sample = [SEPARATOR.join(tokens) for tokens in rows if tokens]
    encoder, _ = fit_encoder(counts, len(sample), sample, labels)
    phi = encoder.encode(messages)
    points = phi[phi.any(axis=1)]
    centroids = kmeans.fit(points, clusters, iterations=5, seed=0, allow_fewer=True).centroids
    # A copy remembers no words.
    return Fitted(replace(encoder), centroids)


def prepare(variant: str, fitted: Fitted) -> Label:
    """Return a function that labels comments: int32 [N] clusters, -1 without a known token. Its cache is empty."""
    if variant == OURS:
        encoder = replace(fitted.encoder)  # with its own memory of words

        def ours(comments: Sequence[str]) -> np.ndarray:
            phi = encoder.encode(comments)
            return np.where(phi.any(axis=1), kmeans.assign(phi, fitted.centroids), -1)

        return ours

    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    splitter = Splitter()
    analyzer = (lambda text: tokenize(mask(text))) if variant == PEER else (lambda text: splitter.split([text])[0])
    # Rows get their length at the end, so that they need none before.
    vectorizer = TfidfVectorizer(analyzer=analyzer, vocabulary=fitted.encoder.vocabulary, norm=None, dtype=np.float32)
    vectorizer.idf_ = fitted.encoder.weights
    svd = TruncatedSVD(fitted.encoder.vectors.shape[1])
    svd.components_ = np.ascontiguousarray(fitted.encoder.vectors.T)
    k = len(fitted.centroids)
    clusters = KMeans(k, init=fitted.centroids, n_init=1, max_iter=1).fit(fitted.centroids)
    clusters.cluster_centers_ = fitted.centroids

    def theirs(comments: Sequence[str]) -> np.ndarray:
        phi = unit_rows(svd.transform(vectorizer.transform(comments)))
        return np.where(phi.any(axis=1), clusters.predict(phi), -1)

    return theirs


def label_all(label: Label, messages: Sequence[str], start: int, stop: int) -> np.ndarray:
    """Return the labels, int32 [stop - start], of a range of the messages repeated without end."""
    labels = np.empty(stop - start, np.int32)
    for first in range(start, stop, BATCH):
        last = min(first + BATCH, stop)
        labels[first - start : last - start] = label(
            [messages[number % len(messages)] for number in range(first, last)]
        )
    return labels


class Crew:
    """The worker processes of one variant, each of which labels its stretch of the comments."""

    def __init__(self, variant: str, fitted: Fitted, messages: Sequence[str], workers: int):
        context = multiprocessing.get_context("spawn")
        self._workers = [
            ProcessPoolExecutor(1, context, initializer=_start, initargs=(variant, fitted, messages))
            for _ in range(workers)
        ]

    def renew(self, comments: int) -> None:
        """Clear the caches of the workers, and wait until they are ready."""
        self._each(_renew, self._stretches(comments))

    def label(self, comments: int) -> np.ndarray:
        """Return labels, int32 [comments]."""
        return np.concatenate(self._each(_label, self._stretches(comments)))

    def peak_bytes(self) -> int:
        """Return the peak memory of a worker so far."""
        return max(self._each(_peak_bytes, [()] * len(self._workers)))

    def close(self) -> None:
        for worker in self._workers:
            worker.shutdown()

    def _stretches(self, comments: int) -> list[tuple[int, int]]:
        ends = np.linspace(0, comments, len(self._workers) + 1).astype(int).tolist()
        return list(itertools.pairwise(ends))

    def _each(self, function: Callable, arguments: Sequence[tuple]) -> list:
        futures = [worker.submit(function, *own) for worker, own in zip(self._workers, arguments, strict=True)]
        return [future.result() for future in futures]


def take_turns(
    crews: dict[str, Crew], comments: int, rounds: int, *, anew: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the seconds of each variant in every round, and its labels; `anew` clears caches between rounds."""
    seconds: dict[str, list[float]] = {variant: [] for variant in crews}
    labels = {}
    for number in range(rounds):
        for variant, crew in crews.items():
            if anew or number == 0:
                crew.renew(comments)
            start = time.perf_counter()
            labels[variant] = crew.label(comments)
            seconds[variant].append(time.perf_counter() - start)
    return {variant: np.array(found) for variant, found in seconds.items()}, labels


def _peak_of_one_pass(variant: str, fitted: Fitted, messages: Sequence[str], comments: int) -> int:
    crew = Crew(variant, fitted, messages, WORKERS.value)
    try:
        crew.renew(comments)
        crew.label(comments)
        return crew.peak_bytes()
    finally:
        crew.close()


# In a worker: its labeling function, set when it starts.
_work: dict = {}


def _start(variant: str, fitted: Fitted, messages: Sequence[str]) -> None:
    _work.update(variant=variant, fitted=fitted, messages=messages)


def _renew(start: int, stop: int) -> None:
    _work["label"] = prepare(_work["variant"], _work["fitted"])
    # Whatever is compiled is compiled for a batch's size, and knows one message then.
    for size in {min(BATCH, stop - start), (stop - start) % BATCH} - {0}:
        _work["label"](_work["messages"][:1] * size)


def _label(start: int, stop: int) -> np.ndarray:
    return label_all(_work["label"], _work["messages"], start, stop)


def _peak_bytes() -> int:
    if Path("/proc/self/status").exists():
        return peak_bytes()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    cli.run(main, __doc__)
