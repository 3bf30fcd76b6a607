"""Encoders with the heads that explain their predictions."""

import dataclasses
from typing import NamedTuple

import numpy as np

from vise_jax import artifact
from vise_jax.encoder import Encoder
from vise_jax.engagement import Labeler, meaning
from vise_jax.errors import UserError
from vise_jax.evaluation import heads, results
from vise_jax.evaluation.measure import name_of
from vise_jax.inference import extract, predict
from vise_jax.inference.explain import AffineHead, own_head


class Column(NamedTuple):
    """An encoder with a head; see `vise_jax.reporting.explanations.Explained`."""

    name: str
    encoder: Encoder
    head: AffineHead
    classes: list[str]


def open_column(source: str, head: str, labeler: str, split: int, seed: int) -> Column:
    """Open an encoder and one of its heads.

    Args:
        source: an encoder's directory, `random:NAME` or `random:DIRECTORY`.
        head: path of a result, or "clusters" for the encoder's own comment head.
        labeler: directory, for the words of the clusters; may be empty.
        split: position of the split whose head is taken from a result.
        seed: of random weights, as in the measurement.

    Raises:
        UserError: no such encoder, head or split; a result of another encoder, of texts, or without a head.
    """
    if head == "clusters":
        encoder = Encoder.load(source)
        return Column(name_of(source), encoder, *_clusters(source, encoder, labeler))
    path = artifact.location(head)
    if not artifact.is_file(path):
        raise UserError(f"--head {head} is no result of evaluate.py: give its .json file, or clusters.")
    result = results.read(path)
    if result["setting"] != "image":
        raise UserError(f"{path} used texts: give a result of the setting image.")
    if not split < len(result["splits"]):
        raise UserError(f"{path} has {len(result['splits'])} splits: --split must be smaller.")
    config_seed = result["config"].get("seed", seed)
    encoder = extract.open_encoder(source, int(str(config_seed)))
    classes = result["data"]["classes"]
    is_measured = encoder.fingerprint == result["encoder"]["fingerprint"]
    crop = int(str(result["encoder"]["preprocessing"]["crop"]))
    encoder = dataclasses.replace(encoder, preprocessing=encoder.preprocessing.at(crop))
    if result["protocol"] == "finetune":
        if (encoder.provenance.get("fine_tuned") or {}).get("result") != path.name:
            raise UserError(
                f"{source} is not the encoder that {path} left: measure with --config.finetune.keep_weights=True, and "
                f"give {path.stem}.finetuned-NUMBER."
            )
        return Column(name_of(source), encoder, own_head(encoder, "class"), classes)
    if not is_measured:
        raise UserError(f"{path} is of another encoder than {source}: give the encoder that it measured.")
    linear = heads.read(heads.path_of(path, result["splits"][split]["seed"]))
    kernel = linear.scale[:, None] * linear.kernel
    return Column(result["encoder"]["name"], encoder, AffineHead(kernel, linear.bias - linear.mean @ kernel), classes)


def _clusters(source: str, encoder: Encoder, labeler: str) -> tuple[AffineHead, list[str]]:
    if "comments" not in (encoder.architecture.get("heads") or {}):
        raise UserError(
            f"{source} has no comment head: give an encoder that train.py wrote, or the result of evaluate.py."
        )
    head = own_head(encoder, "comments")
    names = [f"cluster {number}" for number in range(len(head.bias))]
    if labeler:
        loaded = Labeler.load(artifact.location(labeler))
        predict.check(encoder, loaded)
        for number in range(len(names)):
            terms = [term for pairs in meaning.terms(loaded, number).values() for term, _ in pairs[:3]]
            names[number] = f"{number}: {' '.join(terms)}"
        # They were never a label.
        bias = np.array(head.bias)
        bias[loaded.suppressed] = -np.inf
        head = head._replace(bias=bias)
    return head, names
