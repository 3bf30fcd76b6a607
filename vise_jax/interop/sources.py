"""Published checkpoints that can be converted: layout, preprocessing and license."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vise_jax.interop.layouts import Layout, detectron2, prefixed, sequential, timm_clip
from vise_jax.preprocessing import Preprocessing

_IMAGENET = Preprocessing.imagenet()
_CLIP = Preprocessing(
    color="RGB",
    scale=255.0,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    resize=224,
    crop=224,
    interpolation="bicubic",
)
_DETECTRON2 = replace(_IMAGENET, color="BGR", scale=1.0, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
_RESNET50 = {"resnet50": "resnet50"}
_RESNEXT = {name: name for name in ("resnext101_32x16d", "resnext101_32x8d")}


@dataclass(frozen=True)
class Source:
    """A kind of published checkpoint.

    Args:
        title: shown by `convert.py --list`.
        architectures: name for `vise_jax.models.build` by value of `--arch`; the first is the default.
        layouts: layouts of the files, by name. Empty = torchvision's names after any prefix.
        drop: regular expressions of keys of other parts, which are ignored.
        preprocessing: of their images.
        license: of the weights.
        where: address of the file.
        layout_verified: whether the layout is documented.
        notes: assumptions that are not documented.
        published: names of published files by SHA-256 or a prefix of it. Where the name has the prefix, as on
            torch.hub, it is compared before the file is opened.
        resize: length of the shorter side by SHA-256 or a prefix of it, for files that differ from `preprocessing`.
    """

    title: str
    architectures: Mapping[str, str]
    layouts: Mapping[str, Layout]
    drop: tuple[str, ...]
    preprocessing: Preprocessing
    license: str
    where: str
    layout_verified: bool = True
    notes: tuple[str, ...] = ()
    published: Mapping[str, str] = field(default_factory=dict)
    resize: Mapping[str, int] = field(default_factory=dict)


_CLASSIFIER = r"fc\.(weight|bias)"

# Sources by their name for --source.
SOURCES: dict[str, Source] = {
    "torchvision": Source(
        title="supervised on ImageNet",
        architectures={name: name for name in ("resnet50", "resnet18", "resnet101", *_RESNEXT)},
        layouts={"torchvision": prefixed("")},
        drop=(_CLASSIFIER,),
        preprocessing=_IMAGENET,
        license="BSD-3-Clause",
        where="https://download.pytorch.org/models/ (the paper has the V1 weights)",
        published={
            "f37072fd": "resnet18-f37072fd.pth",
            "5c106cde": "resnet18-5c106cde.pth",
            "0676ba61": "resnet50-0676ba61.pth",
            "19c8e357": "resnet50-19c8e357.pth",
            "11ad3fa6": "resnet50-11ad3fa6.pth",
            "63fe2227": "resnet101-63fe2227.pth",
            "5d3b4d8f": "resnet101-5d3b4d8f.pth",
            "cd907fc2": "resnet101-cd907fc2.pth",
            "8ba56ff5": "resnext101_32x8d-8ba56ff5.pth",
            "110c445d": "resnext101_32x8d-110c445d.pth",
        },
        # The V2 weights.
        resize={"11ad3fa6": 232, "cd907fc2": 232, "110c445d": 232},
    ),
    "wsl": Source(
        title="IG-940M-IN: hashtags of 940M Instagram images, then ImageNet",
        architectures=_RESNEXT,
        layouts={"torchvision": prefixed("")},
        drop=(_CLASSIFIER,),
        preprocessing=_IMAGENET,
        license="CC-BY-NC-4.0",
        where="https://github.com/facebookresearch/WSL-Images, or timm/resnext101_32x16d.fb_wsl_ig1b_ft_in1k",
        published={
            "c6f796b0": "ig_resnext101_32x16-c6f796b0.pth",
            "c38310e5": "ig_resnext101_32x8-c38310e5.pth",
        },
    ),
    "moco": Source(
        title="MoCo-v2, 800 epochs of ImageNet: the query encoder",
        architectures=_RESNET50,
        layouts={"module.encoder_q": prefixed("module.encoder_q."), "encoder_q": prefixed("encoder_q.")},
        drop=(
            r"(module\.)?encoder_k\..*",
            r"(module\.)?encoder_q\.fc\.([02]\.)?(weight|bias)",
            r"(module\.)?queue(_ptr)?",
        ),
        preprocessing=_IMAGENET,
        license="CC-BY-NC-4.0",
        where="https://github.com/facebookresearch/moco",
    ),
    "virtex": Source(
        title="VirTex: captions of COCO; the hub file or a full model",
        architectures=_RESNET50,
        layouts={
            "torchvision": prefixed(""),
            "visual.cnn": prefixed("visual.cnn."),
            "model.visual.cnn": prefixed("model.visual.cnn."),
        },
        drop=(r"(model\.)?(backward_)?textual\..*",),
        preprocessing=_IMAGENET,
        license="MIT",
        where="https://github.com/kdexd/virtex",
    ),
    "icmlm": Source(
        title="ICMLM (tfm, att-fc): masked words in captions of COCO",
        architectures=_RESNET50,
        layouts={},
        drop=(rf"(.*\.)?{_CLASSIFIER}",),
        preprocessing=_IMAGENET,
        license="unknown: ask the authors",
        where="https://europe.naverlabs.com/icmlm",
        layout_verified=False,
        notes=("layout and preprocessing are not documented: torchvision's are assumed",),
    ),
    "clip": Source(
        title="CLIP RN50: the image encoder",
        architectures={"resnet50": "clip_resnet50"},
        layouts={"openai": prefixed("visual."), "timm": timm_clip},
        drop=(
            r"transformer\.resblocks\..*",
            r"token_embedding\.weight",
            r"positional_embedding",
            r"ln_final\.(weight|bias)",
            r"text_projection",
            r"logit_scale",
            r"input_resolution|context_length|vocab_size",
        ),
        preprocessing=_CLIP,
        license="MIT",
        where="https://github.com/openai/CLIP, or timm/resnet50_clip.openai",
        published={"afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50.pt"},
    ),
    "vqagrid": Source(
        title="grid features for VQA: objects and attributes of Visual Genome",
        architectures={"resnet50": "detectron2_resnet50"},
        layouts={"detectron2": detectron2},
        drop=(r"proposal_generator\..*", r"roi_heads\..*", r"pixel_(mean|std)"),
        preprocessing=_DETECTRON2,
        license="Apache-2.0",
        where="https://github.com/facebookresearch/grid-feats-vqa (R-50)",
        notes=(
            "images are resized and cropped as for the other encoders; the authors' own code resizes to 600 pixels",
        ),
    ),
    "vise": Source(
        title="VisE-250M and VisE-1.2M, the authors' releases",
        architectures=_RESNET50,
        layouts={"vise": sequential},
        drop=(),
        preprocessing=_IMAGENET,
        license="CC-BY-NC-4.0",
        where="https://github.com/KMnP/vise",
        notes=("the normalization is not documented: torchvision's is assumed",),
    ),
}
