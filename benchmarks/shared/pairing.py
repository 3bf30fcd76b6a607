"""Simulated pairing: labeled images get real messages and reactions through a channel of known noise.

The channel divides real messages into groups and real reaction counts into profiles, with scikit-learn's tokens,
TF-IDF, truncated SVD and mini-batch K-means, which share no code with the labeler. Every class prefers some groups and
some profiles, drawn at random. A message of an image is drawn from a preferred group with probability 1 - noise, from
all messages otherwise; its reactions likewise, with a draw of their own. With noise 1, engagement says nothing about
the class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from vise_jax.data.datasets import Dataset
from vise_jax.posts import REACTIONS, RejectLog, read

# Groups of messages and profiles of reactions, and how many of each a class prefers.
GROUPS, PROFILES = 24, 8
PREFERRED_GROUPS, PREFERRED_PROFILES = 3, 2
# Messages of an image: 1 to this number, each as often.
MAX_MESSAGES = 4
# Posts with fewer reactions have no profile to speak of.
MIN_REACTIONS = 10
_ROWS = 5000


@dataclass(frozen=True, eq=False)
class Engagement:
    """What people wrote and pressed, by the channel's groups.

    Attributes:
        messages: the texts, object [M].
        reactions: counts of the five buttons, int64 [R, 5].
        groups: indices of the messages of each group.
        profiles: indices of the reactions of each profile.
    """

    messages: np.ndarray
    reactions: np.ndarray
    groups: list[np.ndarray]
    profiles: list[np.ndarray]


def read_engagement(path: Path) -> Engagement:
    """Read posts, and divide their messages and their reactions into groups.

    Raises:
        UserError: no posts file.
    """
    posts = list(read(path, RejectLog(path)))
    messages = np.array(sorted({text for post in posts for text in post.comments}), object)
    counts = np.array([post.reactions for post in posts if post.reactions], np.int64)
    counts = counts[counts.sum(axis=1) >= MIN_REACTIONS]
    weights = TfidfVectorizer(min_df=5, sublinear_tf=True).fit_transform(messages)
    topics = normalize(TruncatedSVD(64, random_state=0).fit_transform(weights))
    of_messages = MiniBatchKMeans(GROUPS, random_state=0, n_init=3).fit_predict(topics)
    of_reactions = MiniBatchKMeans(PROFILES, random_state=0, n_init=3).fit_predict(normalize(counts.astype(float)))
    return Engagement(
        messages,
        counts,
        [np.flatnonzero(of_messages == group) for group in np.unique(of_messages)],
        [np.flatnonzero(of_reactions == profile) for profile in np.unique(of_reactions)],
    )


@dataclass(frozen=True, eq=False)
class Channel:
    """A channel from classes to engagement.

    Attributes:
        groups: message groups that each class prefers.
        profiles: reaction profiles that each class prefers.
        noise: probability of a draw that doesn't depend on the class.
    """

    groups: list[np.ndarray]
    profiles: list[np.ndarray]
    noise: float


def draw_channel(engagement: Engagement, classes: int, noise: float, seed: int) -> Channel:
    """Draw the preferences of the classes."""
    draw = np.random.default_rng([seed, 0])

    def preferred(count: int, most: int) -> list[np.ndarray]:
        return [draw.choice(count, min(most, count), replace=False) for _ in range(classes)]

    return Channel(
        preferred(len(engagement.groups), PREFERRED_GROUPS),
        preferred(len(engagement.profiles), PREFERRED_PROFILES),
        noise,
    )


def write_posts(dataset: Dataset, numbers: Sequence[int], posts: Iterator[dict[str, Any]], file: BinaryIO) -> None:
    """Write a Parquet file of posts: images of the dataset and the engagement of each."""
    kinds = pa.schema(
        [
            ("post_id", pa.string()),
            ("image_bytes", pa.binary()),
            ("comments", pa.list_(pa.string())),
            ("reactions", pa.struct([(name, pa.int64()) for name in REACTIONS])),
        ]
    )
    with pq.ParquetWriter(file, kinds) as writer:
        for start in range(0, len(numbers), _ROWS):
            rows = [
                {"post_id": f"{number:07d}", "image_bytes": dataset.read(number), **next(posts)}
                for number in numbers[start : start + _ROWS]
            ]
            writer.write_table(pa.Table.from_pylist(rows, kinds))


def through(channel: Channel, engagement: Engagement, labels: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the engagement of an image of each label, drawn through the channel.

    The draws don't depend on the noise: with another one, the same images get noise first.
    """
    draw = np.random.default_rng([seed, 1])

    def pick(preferred: np.ndarray, members: list[np.ndarray], every: int) -> int:
        is_noise, of_group, of_all = draw.random() < channel.noise, draw.random(), draw.random()
        group = members[draw.choice(preferred)]
        return int(of_all * every) if is_noise else int(group[int(of_group * len(group))])

    for label in labels:
        count = int(draw.integers(1, MAX_MESSAGES + 1))
        texts = [pick(channel.groups[label], engagement.groups, len(engagement.messages)) for _ in range(MAX_MESSAGES)]
        reactions = pick(channel.profiles[label], engagement.profiles, len(engagement.reactions))
        yield {
            "comments": [engagement.messages[text] for text in texts[:count]],
            "reactions": dict(zip(REACTIONS, engagement.reactions[reactions].tolist(), strict=True)),
        }


def true_labels(labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield reactions that name the class: as many distinct profiles as classes, at most 31, and no messages.

    A reaction clustering with one cluster per class finds the classes, so that training on it is supervised training.
    """
    for label in labels:
        bits = [(int(label) + 1) >> place & 1 for place in range(len(REACTIONS))]
        yield {"comments": [], "reactions": {name: 10 * bit for name, bit in zip(REACTIONS, bits, strict=True)}}
