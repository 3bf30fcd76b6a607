"""The model card of an encoder: Markdown with the metadata block of Hugging Face's model cards."""

from collections.abc import Mapping
from typing import Any

from vise_jax.preprocessing import Preprocessing

# SPDX identifiers of the licenses that sources state. The metadata has them in lower case; any other text is "other".
_LICENSES = ("Apache-2.0", "BSD-3-Clause", "CC-BY-NC-4.0", "MIT")

_PIPELINES = {"image": "image-feature-extraction", "text": "feature-extraction"}
_USAGE = {
    "image": 'import vise_jax\n\nfeatures = vise_jax.Encoder.load("ENCODER").features(images)  # uint8 [B, H, W, 3]',
    "text": "from vise_jax.text_encoder import TextEncoder\n\n"
    'features = TextEncoder.load("ENCODER").features(["a text", "another"])',
}


def render(
    *,
    architecture: Mapping[str, Any],
    modality: str,
    inputs: str,
    provenance: Mapping[str, Any],
    license: str,
    feature_dim: int,
    parameters: int,
    sha256: str,
    library: str = "vise_jax",
    usage: str = "",
) -> str:
    """Return the card of an encoder. It states what is known and holds no paths.

    Args:
        architecture: resolved, see `models.resolve`.
        modality: of the inputs, "image" or "text".
        inputs: what is done to them, a sentence.
        provenance: of the encoder: "trained", "converted", "finetuned" or "random".
        license: of the weights.
        feature_dim: number of features.
        parameters: number of parameters.
        sha256: of the weights.
        library: that loads the files.
        usage: Python code that loads them; "" for vise_jax's own.
    """
    heads = architecture.get("heads", {})
    lines = [
        "---",
        f"library_name: {library}",
        f"pipeline_tag: {_PIPELINES[modality]}",
        f"license: {license.lower() if license in _LICENSES else 'other'}",
        f"tags: [{modality}-encoder, vise]",
        "---",
        "",
        f"# {architecture['name']}, {_origin(provenance)}",
        "",
        f"A vise_jax {modality} encoder: {architecture['name']} of width {architecture['width']}, {parameters:,} "
        f"parameters, {feature_dim:,} features.",
        "",
        "## Use",
        "",
        "```python",
        usage or _USAGE[modality],
        "```",
        "",
        inputs,
        "",
        "## Training",
        "",
        *_training(provenance, heads),
        "",
        "## Limits",
        "",
        *_limits(provenance),
        "",
        "## License and checksum",
        "",
        f"License of the weights: {license}.",
        "",
        f"SHA-256 of the weights: `{sha256}`",
        "",
    ]
    return "\n".join(lines)


def of_images(preprocessing: Preprocessing) -> str:
    """Return the sentence on the inputs of an image encoder."""
    images = preprocessing
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (images.mean, images.std))
    return (
        f"Images: {images.color}, shorter side resized to {images.resize} pixels ({images.interpolation}, "
        f"antialiased), center crop of {images.crop}, divided by {images.scale:g}; mean {mean}; standard deviation "
        f"{std}."
    )


def _origin(provenance: Mapping[str, Any]) -> str:
    if "converted" in provenance:
        return f"converted from {provenance['converted'].get('source', 'a checkpoint')}"
    if "trained" in provenance:
        return "trained on visual engagement (VisE)"
    return "with random weights" if "random" in provenance else "fine-tuned"


def _training(provenance: Mapping[str, Any], heads: Mapping[str, int]) -> list[str]:
    if "converted" in provenance:
        about = provenance["converted"]
        lines = [f"Not trained here: the weights were converted from a file of SHA-256 `{about.get('sha256', '?')}`."]
        if not about.get("layout_verified", True):
            lines.append("The layout of that source's files is not documented: it was not verified.")
        return [*lines, *(f"- {note}" for note in about.get("notes", []))]
    trained = provenance.get("trained")
    if trained is None:
        return ["Random weights: the baseline." if "random" in provenance else "See `provenance` in `encoder.json`."]
    start = "from scratch"
    if "from" in provenance:
        start = f"from the weights of another encoder (license: {provenance['from'].get('license', '?')})"
    classes = " and ".join(f"{count:,} clusters of {name}" for name, count in heads.items()) or "clusters of engagement"
    lines = [
        f"Trained {start} to predict how people reacted to images (Jia et al., ICCV 2021; "
        f"https://arxiv.org/abs/2104.07767): {classes}. It is not the authors' model.",
    ]
    config = trained.get("config", {})
    rows = {
        "crop": config.get("data.image_size"),
        "batch size": config.get("training.batch_size"),
        "epochs": config.get("training.epochs") if config.get("training.steps") is None else None,
        "steps": config.get("training.steps"),
        "learning rate per 256 images": config.get("training.learning_rate"),
        "weight decay": config.get("training.weight_decay"),
        "seed": config.get("training.seed"),
        "shards": trained.get("shards"),
        "labeler": trained.get("labeler"),
    }
    table = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return [*lines, "", "| | |", "|---|---|", *table] if table else lines


def _limits(provenance: Mapping[str, Any]) -> list[str]:
    if "trained" in provenance:
        return [
            "It has learned how one audience reacted to images, with its prejudices, and nothing about what is true or "
            "who someone is. Judging people by their pictures is no use of it.",
            "Nothing was measured on other platforms, languages or years unless stated here: add what you measured.",
        ]
    return ["See the card of the source."]
