"""Every reader of files that people or other programs write, with valid files to start from.

A reader returns, counts a reject, or raises a `UserError`. It never crashes, hangs, fills the memory, writes a file, or
raises anything else, whatever is in a file.
"""

import contextlib
import gzip
import io
import json
import random
import shutil
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mutations
import numpy as np
import zstandard
from PIL import Image

from vise_jax.errors import UserError

# A reader that takes longer for a file of a few kilobytes hangs.
MOST_SECONDS = 20.0


class Reader(NamedTuple):
    """How valid files are written, and how they are read.

    Attributes:
        write: writes them into an empty directory.
        read: reads them.
        only: patterns of the files to mutate.
        is_slow: whether it reads few files a second.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    only: tuple[str, ...] = ("**/*",)
    is_slow: bool = False


def picture(number: int, suffix: str = "jpeg", mode: str = "RGB") -> bytes:
    """Return a small image file."""
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, suffix)
    return file.getvalue()


def _post(number: int) -> dict[str, Any]:
    return {
        "post_id": f"p{number}",
        "image": f"{number}.jpg",
        "comments": [f"so w{number % 3} 😀", "w1 w2"],
        "reactions": {"love": number, "sad": 1},
    }


def _lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


POSTS = [_post(number) for number in range(6)]


def _write_parquet(directory: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**post, "image": None, "image_bytes": picture(0)} for post in POSTS]
    pq.write_table(pa.Table.from_pylist(rows), directory / "posts.parquet", row_group_size=3)


def _write_tar(directory: Path) -> None:
    with tarfile.open(directory / "posts.tar", "w") as archive:
        for number, post in enumerate(POSTS):
            for suffix, content in (("jpg", picture(number)), ("json", json.dumps(post).encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _read_posts(directory: Path) -> None:
    from vise_jax.posts import RejectLog, expand, read
    from vise_jax.posts.readers import split_file

    for path in expand(f"{directory}/posts*"):
        for start, end in split_file(path, 200)[1]:
            for post in read(path, RejectLog(path), start, end):
                assert all(isinstance(comment, str) for comment in post.comments)


def _posts(name: str, content: bytes) -> Reader:
    return Reader(lambda directory: (directory / name).write_bytes(content), _read_posts)


def _imported(kind: str, name: str, content: bytes) -> Reader:
    def read(directory: Path) -> None:
        from vise_jax.importing.importer import import_posts
        from vise_jax.importing.kinds import KINDS, of_table

        table = of_table({"post_id": "id", "comments": "replies[].text", "reactions.love": "loves", "image": "image"})
        output = directory.with_name("imported")
        shutil.rmtree(output, ignore_errors=True)
        import_posts([directory / name], table if kind == "table" else KINDS[kind], output)

    return Reader(lambda directory: (directory / name).write_bytes(content), read, is_slow=True)


_CROWDTANGLE = (
    "URL,Type,Message,Likes,Love,Wow,Haha,Sad,Angry,Care\n"
    'https://x.test/1/posts/1234567,Photo,"w1, ""w2""","1,234",1,2,3,4,5,6\n'
    "https://x.test/permalink.php?story_fbid=777777,Photo,w3,1,2,3,4,5,6,7\n"
)
_REDDIT = [
    {"id": "abc", "url": "https://i.test/a.jpg", "post_hint": "image", "over_18": False, "title": "w1"},
    {"id": "c1", "link_id": "t3_abc", "body": "w1 &amp; w2", "author": "u", "created_utc": 1500000000, "score": 3},
]
_FEDIVERSE: list[dict[str, Any]] = [
    {
        "id": "1",
        "content": "<p>w1</p>",
        "sensitive": False,
        "favourites_count": 3,
        "media_attachments": [{"id": "m1", "type": "image", "url": "https://m.test/1.jpg"}],
        "pleroma": {"emoji_reactions": [{"name": "😀", "count": 2}]},
    },
    {"id": "2", "in_reply_to_id": "1", "content": "<p>w2 <a class='mention'>@u</a></p>", "created_at": "2024"},
    {"id": "3", "replyId": "1", "text": "w3", "createdAt": "2024", "reactions": {":a@b:": 2}, "files": []},
]
_BLUESKY: list[dict[str, Any]] = [
    {
        "uri": "at://did:x/app.bsky.feed.post/1",
        "likeCount": 3,
        "record": {"text": "w1", "embed": {"images": [{"image": {"ref": {"$link": "bafk"}}}]}},
    },
    {
        "post": {
            "uri": "at://did:x/app.bsky.feed.post/2",
            "record": {"text": "w2", "reply": {"root": {"uri": "at://did:x/app.bsky.feed.post/1"}}, "createdAt": "1"},
        }
    },
    {
        "did": "did:y",
        "commit": {
            "operation": "create",
            "collection": "app.bsky.feed.like",
            "rkey": "3",
            "record": {"subject": {"uri": "at://did:x/app.bsky.feed.post/1"}},
        },
    },
]
_TABLE = [{"id": "1", "replies": [{"text": "w1"}, {"text": "w2"}], "loves": 3, "image": "1.jpg"}]


# Formats and modes.
_IMAGES = (
    *(("jpeg", "RGB"), ("jpeg", "L"), ("jpeg", "CMYK"), ("png", "RGB"), ("png", "P"), ("png", "I;16"), ("png", "LA")),
    *(("gif", "P"), ("webp", "RGBA"), ("bmp", "RGB"), ("tiff", "RGB"), ("tiff", "F"), ("avif", "RGB")),
)


def _write_images(directory: Path) -> None:
    for number, (suffix, mode) in enumerate(_IMAGES):
        (directory / f"{number}.{suffix}").write_bytes(picture(number, suffix, mode))


def _read_for_labels(directory: Path) -> None:
    """Read images of posts; what is accepted has to decode in training."""
    import tensorflow as tf

    from vise_jax.data.crops import decode_window, random_windows
    from vise_jax.labeling.images import read_image
    from vise_jax.posts import BadPost, Post

    for path in sorted(directory.iterdir()):
        for side in (0, 10):
            post = Post("p", image=path.name, source=directory / "posts.jsonl")
            try:
                encoded, digest = read_image(post, 100_000, side=side)
            except BadPost:
                continue
            assert 0 <= digest < 2**64
            numbers = np.array([1])
            (window,) = random_windows([encoded], numbers, seed=0, crop_area=(0.5, 1.0), crop_ratio=(0.8, 1.2))
            assert decode_window(tf.constant(encoded), tf.constant(window), 8, antialias=False).shape == (8, 8, 3)


def _read_unlabeled(directory: Path) -> None:
    from vise_jax.data import datasets, images
    from vise_jax.preprocessing import Preprocessing

    dataset = datasets.open_unlabeled(directory)
    list(images.decode_each(dataset, range(len(dataset)), Preprocessing.imagenet(16), 1, 100_000))
    for index in range(len(dataset)):
        try:
            images.thumbnail(dataset, index, 8, 100_000)
        except UserError:
            continue


def _read_labeled(directory: Path) -> None:
    from vise_jax.data import datasets, images
    from vise_jax.preprocessing import Preprocessing

    found = [*directory.glob("*.csv"), *directory.glob("*.zip")]
    dataset = datasets.open_labeled(found[0] if found else directory)
    list(images.decode_each(dataset, range(len(dataset)), Preprocessing.imagenet(16), 1, 100_000))


def _write_csv(directory: Path) -> None:
    rows = ["image,label,split,text,group"]
    for number in range(8):
        (directory / f"{number}.jpg").write_bytes(picture(number))
        rows.append(f"{number}.jpg,{'ab'[number % 2]},{'train' if number < 4 else 'test'},w{number},g{number}")
    (directory / "labels.csv").write_text("\n".join(rows) + "\n")


def _write_zip(directory: Path) -> None:
    with zipfile.ZipFile(directory / "set.zip", "w") as archive:
        for number in range(8):
            split = "train" if number < 4 else "test"
            archive.writestr(f"set/{split}/{'ab'[number % 2]}/{number}.jpg", picture(number))


def _write_memes(directory: Path) -> None:
    (directory / "img").mkdir()
    for name, numbers in {"train": range(4), "dev": range(4, 8)}.items():
        memes = [{"id": n, "img": f"img/{n}.png", "label": n % 2, "text": f"w{n}"} for n in numbers]
        (directory / f"{name}.jsonl").write_bytes(_lines(memes))
        for number in numbers:
            (directory / "img" / f"{number}.png").write_bytes(picture(number, "png"))


def _write_birds(directory: Path) -> None:
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": [], "classes": []}
    for number in range(1, 9):
        species = f"00{number % 2 + 1}.Bird"
        (directory / "images" / species).mkdir(parents=True, exist_ok=True)
        (directory / "images" / species / f"{number}.jpg").write_bytes(picture(number))
        tables["images"].append(f"{number} {species}/{number}.jpg")
        tables["image_class_labels"].append(f"{number} {number % 2 + 1}")
        tables["train_test_split"].append(f"{number} {int(number < 5)}")
    tables["classes"] = ["1 001.Bird", "2 002.Bird"]
    for name, rows in tables.items():
        (directory / f"{name}.txt").write_text("\n".join(rows) + "\n")


def _task(name: str) -> Callable[[Path], object]:
    def read(directory: Path) -> object:
        from vise_jax.data import paper_datasets

        return getattr(paper_datasets, f"open_{name}")(directory)

    return read


_VECTORS = {"w1": (1.0, -0.5, 2.0), "w2": (0.25, 0.0, 1.0), "w3": (3.0, 1.0, -1.0)}


def _vectors(kind: str) -> Reader:
    rows = "".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in _VECTORS.items()).encode()
    binary = b"3 3\n" + b"".join(f"{w} ".encode() + np.array(v, "<f4").tobytes() + b"\n" for w, v in _VECTORS.items())
    content = {"glove": rows, "fasttext": b"3 3\n" + rows, "word2vec": binary, "gzip": gzip.compress(b"3 3\n" + rows)}

    def read(directory: Path) -> object:
        from vise_jax.text import word_vectors

        return word_vectors.read(str(directory / "vectors"), {word: row for row, word in enumerate(_VECTORS)})

    return Reader(lambda directory: (directory / "vectors").write_bytes(content[kind]), read)


def _tokenizer() -> bytes:
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    words = ["<s>", "<pad>", "</s>", "<unk>", "w1", "w2", "w3", "w4"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer.to_str().encode()


def _write_static(directory: Path) -> None:
    import safetensors.numpy

    tensors = {"embeddings": np.ones((8, 3), np.float32), "weights": np.ones(8, np.float32)}
    (directory / "model.safetensors").write_bytes(safetensors.numpy.save(tensors))
    (directory / "tokenizer.json").write_bytes(_tokenizer())
    (directory / "config.json").write_text('{"max_length": 16}')


def _read_static(directory: Path) -> None:
    from vise_jax.text import static_embeddings

    tokenizer = static_embeddings.read_tokenizer(str(directory))
    static_embeddings.Splitter(tokenizer).split(["w1 w2", "x"])
    static_embeddings.read_vectors(str(directory), {"w1": 0, "w2": 1})


def _write_encoder(directory: Path) -> None:
    from vise_jax import models
    from vise_jax.encoder import Encoder
    from vise_jax.preprocessing import Preprocessing

    architecture: dict[str, Any] = {"name": "resnet18", "width": 2, "stem": "cifar", "heads": {"comments": 3}}
    shutil.rmtree(directory)
    Encoder.from_model(
        models.build(**architecture, seed=0),
        architecture=architecture,
        preprocessing=Preprocessing.imagenet(16),
        provenance={},
        license="CC0",
    ).save(directory)


def _read_encoder(directory: Path) -> None:
    from vise_jax.encoder import Encoder

    Encoder.load(directory).card()


def _write_text_encoder(directory: Path) -> None:
    from vise_jax import models, variables
    from vise_jax.text_encoder import TextEncoder

    sizes: dict[str, Any] = {"layers": 1, "width": 8, "attention_heads": 2, "intermediate_width": 8, "vocabulary": 8}
    sizes |= {"positions": 18, "segments": 1, "first_position": 2, "epsilon": 1e-5}
    architecture = models.resolve("transformer", **sizes, pooling="mean", unit_length=False)
    weights = variables.of_model(models.build(**architecture, seed=2))
    shutil.rmtree(directory)
    TextEncoder(architecture, weights, _tokenizer(), 16, {}, "CC0").save(directory)


def _read_text_encoder(directory: Path) -> None:
    from vise_jax.text_encoder import TextEncoder

    TextEncoder.load(directory).card()


def labels() -> Any:
    from vise_jax import config

    settings = config.base().labels
    settings.update(comment_clusters=2, reaction_clusters=2, cluster_fraction=0.4, comment_dim=2, min_comment_count=1)
    settings.update(min_posts_to_stop=0, min_posts=1, allow_fewer_clusters=True, shard_megabytes=0.05)
    return settings


def _write_labeler(directory: Path) -> None:
    from vise_jax.labeling.fit import fit

    posts = directory.with_name("posts")
    posts.mkdir()
    rows = [_post(number) for number in range(60)]
    for post in rows:
        (posts / str(post["image"])).write_bytes(picture(int(str(post["post_id"])[1:])))
    (posts / "posts.jsonl").write_bytes(_lines(rows))
    directory.rmdir()
    fit([posts / "posts.jsonl"], labels(), directory)


def _read_labeler(directory: Path) -> None:
    from vise_jax.engagement import Labeler

    Labeler.load(directory).label(POSTS)


def _write_shards(directory: Path) -> None:
    from vise_jax.labeling.label import label

    labeler = directory.with_name("labeler")
    labeler.mkdir()
    _write_labeler(labeler)
    directory.rmdir()
    label([directory.with_name("posts") / "posts.jsonl"], labeler, labels(), directory)


def _read_shards(directory: Path) -> None:
    from vise_jax.data import shards
    from vise_jax.data.epoch_order import Shuffle
    from vise_jax.data.loader import batches
    from vise_jax.data.records import CorruptExamples
    from vise_jax.reporting import duplicates

    manifest = shards.read_manifest(directory, damaged=True)
    shards.read_statistics(directory, manifest)
    duplicates.read(directory, 1)
    crops: dict[str, Any] = {"image_size": 8, "crop_area": (0.5, 1.0), "crop_ratio": (0.8, 1.2), "antialias": False}
    (corrupt := directory.with_name("corrupt.jsonl")).unlink(missing_ok=True)
    log = CorruptExamples(corrupt)
    stream = batches(
        directory, manifest, batch_size=4, seed=0, corrupt=log, shuffle=Shuffle(8, 2, 1, 8), threads=1, **crops
    )
    for _ in range(-(-manifest["examples"] // 4)):
        next(stream)


def _write_results(directory: Path) -> None:
    from vise_jax import config
    from vise_jax.evaluation import measure

    (encoder := directory.with_name("encoder")).mkdir()
    _write_encoder(encoder)
    (images := directory.with_name("images")).mkdir()
    for number in range(16):
        (images / "ab"[number % 2]).mkdir(exist_ok=True)
        (images / "ab"[number % 2] / f"{number}.jpg").write_bytes(picture(number))
    settings = config.evaluation()
    settings.update(task="folder", protocol="linear", splits=2, train_fraction=0.5, validation_fraction=0.25)
    settings.linear.l2 = (0.1, 1.0)
    for name in ("a", "b"):
        measure.measure(settings, str(encoder), images, directory, name)


def _read_results(directory: Path) -> None:
    from vise_jax.evaluation import results
    from vise_jax.reporting import sensitivity, tables

    measurements = results.read_all(directory)
    output = directory.with_name("report")
    tables.write(measurements, output)
    sensitivity.write(measurements, output)
    with contextlib.redirect_stdout(io.StringIO()):
        tables.show_comparisons(directory, measurements, "a")


def _write_run(directory: Path) -> None:
    (directory / "config.json").write_text('{"config": {"training.seed": 0}, "shards": "s"}')
    records = [{"step": step, "loss": 1 / step, "seconds": 0.5} for step in range(1, 20)]
    (directory / "metrics.jsonl").write_bytes(_lines(records))


def _read_run(directory: Path) -> None:
    from vise_jax.reporting import curves, runs

    every = runs.read([directory])
    curves.write(every, directory.with_name("report"))
    with contextlib.redirect_stdout(io.StringIO()):
        runs.show(every)


def _write_transformer(directory: Path) -> None:
    import safetensors.numpy

    config = {"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    config |= {"intermediate_size": 8, "vocab_size": 8, "max_position_embeddings": 16, "type_vocab_size": 1}
    config |= {"layer_norm_eps": 1e-12, "hidden_act": "gelu"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_bytes(_tokenizer())
    layer = "encoder.layer.0."
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (8, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (1, 8),
    }
    attention = [f"attention.{name}" for name in ("self.query", "self.key", "self.value", "output.dense")]
    for name in (*attention, "intermediate.dense", "output.dense"):
        shapes |= {f"{layer}{name}.weight": (8, 8), f"{layer}{name}.bias": (8,)}
    for name in ("embeddings.LayerNorm", f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"):
        shapes |= {f"{name}.weight": (8,), f"{name}.bias": (8,)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    (directory / "model.safetensors").write_bytes(safetensors.numpy.save(arrays))


def _read_transformer(directory: Path) -> None:
    from vise_jax.interop.text import convert_text

    convert_text(directory, "bert").features(["w1 w2", "w9"])


def _write_prepared(directory: Path) -> None:
    import tensorflow as tf

    version = directory / "caltech_birds2011" / "0.1.1"
    version.mkdir(parents=True)
    splits: list[dict[str, Any]] = [{"name": name, "shardLengths": ["4"]} for name in ("train", "test")]
    (version / "dataset_info.json").write_text(json.dumps({"splits": splits}))
    (version / "label.labels.txt").write_text("001.Bird\n002.Bird\n")
    for split in ("train", "test"):
        with tf.io.TFRecordWriter(str(version / f"caltech_birds2011-{split}.tfrecord-00000-of-00001")) as writer:
            for number in range(4):
                feature = {
                    "image/filename": tf.train.Feature(bytes_list={"value": [f"{split}{number}.jpg".encode()]}),
                    "label": tf.train.Feature(int64_list={"value": [number % 2]}),
                    "image": tf.train.Feature(bytes_list={"value": [picture(number)]}),
                }
                writer.write(tf.train.Example(features={"feature": feature}).SerializeToString())


def _write_features(directory: Path) -> None:
    from vise_jax.inference import feature_files

    about = {"format_version": 1, "key": "k", "encoder": "e", "crop": 16, "images": 3, "dim": 4, "rejected": {}}
    rows = [(["a.jpg", "b.jpg"], np.ones((2, 4), np.float32)), (["c.jpg"], np.ones((1, 4), np.float32))]
    for suffix in (".npz", ".parquet"):
        feature_files.write(directory / f"features{suffix}", rows, about)


def _read_features(directory: Path) -> None:
    from vise_jax.inference import feature_files, neighbors

    for suffix in (".npz", ".parquet"):
        path = directory / f"features{suffix}"
        try:
            feature_files.read_about(path)
            neighbors.nearest_to(np.ones(4, np.float32), path, 2)
        except UserError:
            continue


def _write_weights(directory: Path) -> None:
    import safetensors.numpy
    import torch

    arrays: dict[str, Any] = {"conv1.weight": np.ones((2, 3, 1, 1), np.float32), "fc.bias": np.zeros(2, np.float16)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    np.savez(directory / "weights.npz", **arrays)
    (directory / "weights.safetensors").write_bytes(safetensors.numpy.save(arrays))
    torch.save({"state_dict": tensors, "epoch": 3, "best": np.float64(1.5)}, directory / "weights.pth")
    torch.save(tensors, directory / "old.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Conv2d(3, 2, 1)).save(str(directory / "script.pt"))


def _read_weights(directory: Path) -> None:
    from vise_jax.interop import containers

    for path in sorted(directory.iterdir()):
        try:
            containers.check(path, sha256=None, max_bytes=1 << 20)
            for array in containers.read(path, max_bytes=1 << 20).values():
                array.sum()
        except UserError:
            continue


def _read_exclusions(directory: Path) -> None:
    from vise_jax.engagement import hashing

    hashing.read_excluded(directory / "ids.txt", b"salt")
    hashing.read_ids(directory / "ids.txt")


_IDS = b'post_id\np1\n"p2"\nimage:0123456789abcdef\n'

READERS: dict[str, Reader] = {
    "posts, JSONL": _posts("posts.jsonl", _lines(POSTS)),
    "posts, gzip": _posts("posts.jsonl.gz", gzip.compress(_lines(POSTS))),
    "posts, Zstandard": _posts("posts.jsonl.zst", zstandard.compress(_lines(POSTS))),
    "posts, Parquet": Reader(_write_parquet, _read_posts),
    "posts, tar": Reader(_write_tar, _read_posts),
    "import, crowdtangle": _imported("crowdtangle", "export.csv", _CROWDTANGLE.encode()),
    "import, reddit": _imported("reddit", "RS.zst", zstandard.compress(_lines(_REDDIT))),
    "import, fediverse": _imported("fediverse", "statuses.jsonl", _lines(_FEDIVERSE)),
    "import, bluesky": _imported("bluesky", "feed.jsonl", _lines(_BLUESKY)),
    "import, table": _imported("table", "table.jsonl", _lines(_TABLE)),
    "images of posts": Reader(_write_images, _read_for_labels, is_slow=True),
    "images": Reader(_write_images, _read_unlabeled),
    "dataset, CSV": Reader(_write_csv, _read_labeled, ("*.csv",)),
    "dataset, zip": Reader(_write_zip, _read_labeled),
    "dataset, memes": Reader(_write_memes, _task("hateful_memes"), ("*.jsonl",)),
    "dataset, birds": Reader(_write_birds, _task("cub"), ("*.txt",)),
    "dataset, prepared birds": Reader(_write_prepared, _task("cub")),
    "word vectors, GloVe": _vectors("glove"),
    "word vectors, fastText": _vectors("fasttext"),
    "word vectors, word2vec": _vectors("word2vec"),
    "word vectors, gzip": _vectors("gzip"),
    "static embeddings": Reader(_write_static, _read_static),
    "encoder": Reader(_write_encoder, _read_encoder, is_slow=True),
    "text encoder": Reader(_write_text_encoder, _read_text_encoder, is_slow=True),
    "transformer": Reader(_write_transformer, _read_transformer, is_slow=True),
    "labeler": Reader(_write_labeler, _read_labeler),
    "shards": Reader(_write_shards, _read_shards, is_slow=True),
    "results": Reader(_write_results, _read_results, ("*.json", "*.npz"), is_slow=True),
    "run": Reader(_write_run, _read_run, is_slow=True),
    "features": Reader(_write_features, _read_features),
    "weights": Reader(_write_weights, _read_weights),
    "exclusion list": Reader(lambda directory: (directory / "ids.txt").write_bytes(_IDS), _read_exclusions),
}


class Finding(NamedTuple):
    """An input that was not handled.

    Attributes:
        what: the exception and where it was raised, or the seconds that the reader took.
        file: name of the file.
        content: of the file.
        trace: the traceback.
    """

    what: str
    file: str
    content: bytes
    trace: str = ""


class Fuzzed:
    """A reader with a directory of valid files, of which one at a time gets another content.

    Args:
        reader: one of `READERS`.
        directory: an empty one, for the files and for what reading them writes.
    """

    def __init__(self, reader: Reader, directory: Path):
        self._reader = reader
        self._directory = directory / "valid"
        self._directory.mkdir(parents=True)
        reader.write(self._directory)
        reader.read(self._directory)
        paths = {path for pattern in reader.only for path in self._directory.glob(pattern) if path.is_file()}
        self.files = {path.relative_to(self._directory).as_posix(): path.read_bytes() for path in sorted(paths)}

    def mutated(self, draw: random.Random) -> tuple[str, bytes]:
        """Return the name of a file, and another content."""
        name = draw.choice(list(self.files))
        return name, mutations.mutated(self.files[name], draw)

    def check(self, name: str, content: bytes) -> Finding | None:
        """Read the files with another content of one; return what went wrong."""
        path = self._directory / name
        began = time.monotonic()
        path.write_bytes(content)
        try:
            self._reader.read(self._directory)
        except UserError as error:
            if not str(error).strip() or "\n" in str(error):
                return Finding(f"no sentence: {error}", name, content)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # panics of Rust code are no `Exception`
            ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "vise_jax/" in frame.filename]
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
            what = f"{type(error).__name__} in {place}: {error}"
            return Finding(what[:300], name, content, traceback.format_exc())
        finally:
            path.write_bytes(self.files[name])
        if (seconds := time.monotonic() - began) > MOST_SECONDS:
            return Finding(f"{seconds:.0f} seconds", name, content)
        return None
