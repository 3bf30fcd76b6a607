"""Fit a labeler: the comment encoder, clusters of comments and reactions, distinctive terms (Sec. 3.2)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import scipy.sparse
from ml_collections import ConfigDict

from vise_jax import artifact, hosts
from vise_jax.engagement import hashing, kmeans, reactions
from vise_jax.engagement.comments import SEPARATOR, CommentEncoder, fit_encoder
from vise_jax.engagement.fit_statistics import Corpus, gather
from vise_jax.engagement.labeler import Labeler, as_post, assign_within
from vise_jax.errors import Interrupted, UserError
from vise_jax.posts import Post, summary
from vise_jax.progress import Progress, track
from vise_jax.text import languages

# Distinctive terms recorded for each comment cluster.
_TERMS = 20
# Comments encoded at a time.
_ROWS = 65_536


def fit_labeler(posts: Iterable[Post | Mapping], labels: ConfigDict) -> Labeler:
    """Fit a labeler on the posts of the cluster split; others are skipped. Posts are read once, as a stream.

    With more comments or reactions than `labels.max_fit_comments` or `max_fit_reactions`, those with the lowest hashes
    are used, whatever the order of the posts. Posts without any comments give a labeler without comment clusters; the
    same holds for reactions.

    Args:
        posts: `Post` or plain dicts of the same schema.
        labels: the `labels` section of a config.

    Raises:
        UserError: nothing to fit on, or too little for the requested number of clusters.
    """
    checked = (as_post(post, reactions.buttons(labels)) for post in posts)
    return cast(Labeler, fit_corpus(gather(track(checked, "reading", "posts"), labels), labels))


def fit_corpus(corpus: Corpus | None, labels: ConfigDict, work: Path | None = None) -> Labeler | None:
    """Fit a labeler on the gathered statistics of posts.

    All processes of `jax.distributed` call it alike. Only the first has the corpus; it sends what is clustered to the
    others, which take part in K-means.

    Args:
        corpus: of all posts; None on the other processes.
        labels: the `labels` section of a config.
        work: a directory of this process for the vectors of the comments and the state of K-means, so that they need no
            memory and an interrupted fit resumes.

    Returns:
        The labeler; None on the other processes.

    Raises:
        UserError: as `fit_labeler`.
    """
    vectors = hosts.on_first(lambda: _vectorize(cast(Corpus, corpus), labels, work))
    comments = _cluster(vectors and vectors.phi, labels, "comment", work, vectors and vectors.languages)
    profiles = _cluster(vectors and vectors.profiles, labels, "reaction", work)
    return hosts.on_first(lambda: _describe(cast(Corpus, corpus), cast(_Vectors, vectors), comments, profiles, labels))


class _Vectors(NamedTuple):
    """What is clustered.

    Attributes:
        encoder: of comments, or None without any.
        tfidf: [N, T], of the sampled comments.
        phi: float32 [M, D], phi_C of the comments with a known token.
        known: int64 [M], their rows in the sample.
        owners: hash of the post of each comment of the sample.
        languages: of the M comments, together: each with its number of comments. One of all with shared clusters.
        profiles: float32 [P, R], phi_R.
    """

    encoder: CommentEncoder | None
    tfidf: scipy.sparse.csr_matrix | None
    phi: np.ndarray
    known: np.ndarray
    owners: list[str]
    languages: dict[str, int]
    profiles: np.ndarray


def check_not_empty(corpus: Corpus, labels: ConfigDict) -> None:
    """Raise a `UserError` if there is nothing to fit on."""
    counts = corpus.counts
    if not counts["comments"] and not counts["reactions"]:
        raise UserError(
            f"None of the {counts['posts']:,} posts can make clusters: {counts['cluster_posts']:,} fall into the "
            f"cluster split (labels.cluster_fraction={labels.cluster_fraction:.3g}), without comments and "
            f"reactions (rejected: {summary(corpus.rejected)}): give more posts, or raise labels.cluster_fraction."
        )


def _vectorize(corpus: Corpus, labels: ConfigDict, work: Path | None) -> _Vectors:
    check_not_empty(corpus, labels)
    comments = list(corpus.comments)
    if labels.languages == "separate":
        comments = _by_language(comments, labels.comment_clusters)
    sample = [tokens for _, tokens, _ in comments]
    encoder, tfidf = (None, None)
    if sample:
        encoder, tfidf = fit_encoder(corpus.documents, corpus.counts["comments"], sample, labels)
    phi, known = _encode(encoder, tfidf, sample, work)
    return _Vectors(
        encoder,
        tfidf,
        phi,
        known,
        [owner for owner, _, _ in comments],
        dict(Counter(comments[row][2] for row in known)),
        reactions.encode(list(corpus.reactions), len(labels.reactions)),
    )


def _by_language(comments: Sequence[tuple[str, str, str]], clusters: int) -> list[tuple[str, str, str]]:
    """Sort comments by language, the most frequent first; those without a cluster of their own are last, as unknown."""
    counts = Counter(language for _, _, language in comments)
    own = [
        language
        for language, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if language != languages.UNKNOWN and count * clusters >= len(comments)
    ]
    ranks = {language: rank for rank, language in enumerate(own)}
    known = (
        (owner, tokens, language if language in ranks else languages.UNKNOWN) for owner, tokens, language in comments
    )
    return sorted(known, key=lambda comment: ranks.get(comment[2], len(ranks)))


def _describe(
    corpus: Corpus,
    vectors: _Vectors,
    comments: tuple[np.ndarray, dict[str, Any]],
    profiles: tuple[np.ndarray, dict[str, Any]],
    labels: ConfigDict,
) -> Labeler:
    """Return the labeler of centroids: what its clusters are about, and which are of too few posts."""
    (comment_centroids, comment_fit), (reaction_centroids, reaction_fit) = comments, profiles
    encoder, tfidf, phi, known, owners, counts, _ = vectors
    separate = labels.languages == "separate" and len(comment_centroids) > 0
    by_language = comment_fit["languages"] if separate else {}
    of_clusters = tuple(language for language, fit in by_language.items() for _ in range(fit["clusters"]))
    if separate:
        spoken = [language for language, count in counts.items() for _ in range(count)]
        clusters = assign_within(phi, spoken, comment_centroids, of_clusters)
    else:
        clusters = kmeans.assign(phi, comment_centroids)
    of_profiles = kmeans.assign(vectors.profiles, reaction_centroids)
    for fit, used in ((comment_fit, clusters), (reaction_fit, of_profiles)):
        if fit["clusters"]:
            fit["empty"] = fit["clusters"] - len(np.unique(used))
    terms, term_weights = _distinctive_terms(None if tfidf is None else tfidf[known], clusters, len(comment_centroids))
    posts = _distinct_posts([owners[row] for row in known], clusters, len(comment_centroids))
    suppressed = np.flatnonzero(posts < labels.min_posts).astype(np.int32)
    if len(posts) == len(suppressed) > 0:
        raise UserError(
            f"None of the {len(posts):,} comment clusters has labels.min_posts={labels.min_posts} distinct posts: "
            "give more posts, ask for fewer labels.comment_clusters, or lower that key."
        )
    comment_fit["suppressed"] = len(suppressed)
    # Those of a few posts are not published.
    terms[suppressed], term_weights[suppressed] = -1, 0
    fitted = {
        **{key: corpus.counts[key] for key in ("posts", "cluster_posts", "excluded", "comments", "reactions")},
        "tokens": len(encoder.vocabulary) if encoder else 0,
        "comment_dim": phi.shape[1],
        "comment_clusters": comment_fit,
        "reaction_clusters": reaction_fit,
        "fitted_on": artifact.fingerprint([corpus.comments.ranked(), corpus.reactions.ranked()]),
    }
    return Labeler(
        labels.to_dict(),
        hashing.salt_check(hashing.salt(labels.salt_file, labels.seed)),
        encoder,
        comment_centroids,
        reaction_centroids,
        terms,
        term_weights,
        suppressed,
        fitted,
        of_clusters,
        languages.model_sha256() if separate else "",
    )


def _encode(
    encoder: CommentEncoder | None, tfidf: scipy.sparse.csr_matrix | None, sample: list[str], work: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return phi_C, float32 [M, D], of the comments with a known token, and their rows in the sample, int64 [M]."""
    if encoder is None or tfidf is None:
        return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
    known: list[np.ndarray] = []

    def chunks() -> Iterator[np.ndarray]:
        with Progress("encoding", tfidf.shape[0], "comments") as progress:
            for start in range(0, tfidf.shape[0], _ROWS):
                if encoder.transformer:
                    phi = encoder.embed([tokens.replace(SEPARATOR, " ") for tokens in sample[start : start + _ROWS]])
                else:
                    phi = encoder.project(tfidf[start : start + _ROWS])
                rows = np.flatnonzero(phi.any(axis=1))
                known.append(start + rows)
                yield phi[rows]
                progress.advance(len(phi))

    if work is None:
        return np.concatenate(list(chunks())), np.concatenate(known)
    path = _points_file(work, "comment")
    with artifact.atomic_file(path) as file:
        for chunk in chunks():
            file.write(chunk.tobytes())
    rows, dimensions = np.concatenate(known), encoder.dim
    if not len(rows):
        return np.zeros((0, dimensions), np.float32), rows
    return np.memmap(path, np.float32, "r", shape=(len(rows), dimensions)), rows


def _distinctive_terms(
    tfidf: scipy.sparse.csr_matrix | None, clusters: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens whose mean TF-IDF weight exceeds the overall mean most, int32 [k, T], and by how much.

    Ranking by the excess, not by the weight itself, keeps words of every comment from heading every cluster.

    Args:
        tfidf: float32 [M, V], scaled to length 1 here.
        clusters: int32 [M], the cluster of each row.
        k: number of clusters.
    """
    terms, weights = np.full((k, _TERMS), -1, np.int32), np.zeros((k, _TERMS), np.float32)
    if tfidf is None:
        return terms, weights
    means = scipy.sparse.csr_matrix((k, tfidf.shape[1]), dtype=np.float32)
    sizes = np.maximum(np.bincount(clusters, minlength=k), 1)
    for start in range(0, tfidf.shape[0], _ROWS):
        rows = tfidf[start : start + _ROWS]
        lengths = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        cluster = clusters[start : start + _ROWS]
        share = np.divide(1 / sizes[cluster], lengths, out=np.zeros(len(lengths)), where=lengths > 0)
        members = scipy.sparse.csr_matrix(
            (share.astype(np.float32), (cluster, np.arange(len(cluster)))), (k, len(lengths))
        )
        means = means + members @ rows
    overall = means.T @ (np.bincount(clusters, minlength=k) / max(1, len(clusters)))
    for number, row in enumerate(means):
        excess = row.data - overall[row.indices]
        order = [column for column in np.lexsort((row.indices, -excess))[:_TERMS] if excess[column] > 0]
        terms[number, : len(order)], weights[number, : len(order)] = row.indices[order], excess[order]
    return terms, weights


def _distinct_posts(owners: list[str], clusters: np.ndarray, k: int) -> np.ndarray:
    """Return the number of distinct posts in each cluster, int64 [k]."""
    _, posts = np.unique(np.array(owners, "S32"), return_inverse=True)
    pairs = np.unique(np.stack([clusters.astype(np.int64), posts.astype(np.int64)]), axis=1)
    return np.bincount(pairs[0], minlength=k)


def _cluster(
    points: np.ndarray | None, labels: ConfigDict, kind: str, work: Path | None, counts: dict[str, int] | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return centroids of the rows of `points`, float32 [K, D], and numbers that describe the fit.

    Args:
        points: float32 [N, D]; None on other processes than the first.
        labels: the `labels` section of a config.
        kind: "comment" or "reaction".
        work: directory for the state of K-means.
        counts: of the rows, which are sorted by language; on the first process.
    """
    phi = _on_all(points, kind, work)
    if not len(phi):
        return np.zeros((0, phi.shape[1]), np.float32), {"clusters": 0}
    k = labels[f"{kind}_clusters"]
    if kind == "reaction" or labels.languages == "shared":
        centroids, inertia = _kmeans(phi, k, labels, kind, kind, work)
        return centroids, {"clusters": len(centroids), "points": len(phi), "inertia": inertia}
    names, rows = (list(counts), list(counts.values())) if counts else ([], [])
    rows = [hosts.from_first(rows[number] if rows else 0) for number in range(hosts.from_first(len(rows)))]
    fits = []
    for number, (count, share) in enumerate(zip(rows, allot(rows, k), strict=True)):
        start = sum(rows[:number])
        name = f"{kind}-{number}"
        title = f"{kind}, {(names[number] or 'other languages')}" if names else kind
        fits.append(_kmeans(phi[start : start + count], share, labels, name, title, work))
    centroids = np.concatenate([fit[0] for fit in fits])
    about = {"clusters": len(centroids), "points": len(phi), "inertia": sum(fit[1] for fit in fits)}
    spoken = {
        name: {"comments": count, "clusters": len(fit[0])}
        for name, count, fit in zip(names or map(str, range(len(rows))), rows, fits, strict=True)
    }
    return centroids, {**about, "languages": spoken}


def allot(counts: Sequence[int], k: int) -> list[int]:
    """Divide clusters among groups in proportion to their counts, at least one each (method of largest remainders).

    Args:
        counts: of comments, above 0.
        k: number of clusters, at least that of the groups.
    """
    exact = np.array(counts) * k / sum(counts)
    shares = np.maximum(np.floor(exact), 1).astype(int)
    while shares.sum() != k:
        step = 1 if shares.sum() < k else -1
        # Of several equal ones the first; a group never loses its last cluster.
        gain = np.where((shares > 1) | (step > 0), step * (exact - shares), -np.inf)
        shares[gain.argmax()] += step
    return shares.tolist()


def _kmeans(
    points: np.ndarray, k: int, labels: ConfigDict, name: str, title: str, work: Path | None
) -> tuple[np.ndarray, float]:
    """Return centroids, float32 [k, D], and the inertia. The state is kept under `name`."""
    with Progress(f"{title} clusters", labels.kmeans_iterations, "iterations") as progress:
        try:
            return kmeans.fit(
                points,
                k,
                iterations=labels.kmeans_iterations,
                seed=labels.seed,
                batch_size=labels.kmeans_batch,
                tolerance=labels.kmeans_tolerance,
                allow_fewer=labels.allow_fewer_clusters,
                state=work / f"{name}.kmeans" if work else None,
                after_iteration=lambda inertia: progress.advance(note=f"inertia {inertia:.4g}"),
            )
        except Interrupted:
            raise
        except UserError as error:
            key = f"labels.{name.partition('-')[0]}_clusters"
            raise UserError(f"{key if title == name else f'{key} ({title})'}: {error}") from error


def _on_all(points: np.ndarray | None, kind: str, work: Path | None) -> np.ndarray:
    """Return the first process's points, float32 [N, D], on every process: the others keep a copy on their disks."""
    if jax.process_count() == 1:
        return cast(np.ndarray, points)
    rows, dimensions = hosts.gather(np.array((0, 0) if points is None else points.shape))[0].tolist()
    starts = range(0, rows, _ROWS)
    if points is not None:
        for start in starts:
            hosts.send_from_first({"points": points[start : start + _ROWS]})
        return points
    if not rows:
        return np.zeros((0, dimensions), np.float32)
    path = _points_file(cast(Path, work), kind)
    with artifact.atomic_file(path) as file:
        for start in starts:
            empty = np.empty((min(_ROWS, rows - start), dimensions), np.float32)
            file.write(hosts.send_from_first({"points": empty})["points"].tobytes())
    return np.memmap(path, np.float32, "r", shape=(rows, dimensions))


def _points_file(work: Path, kind: str) -> Path:
    return work / f"{kind}s.float32"
