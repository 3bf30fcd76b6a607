"""Tables 2 and 3 and Figures 3 to 7 of the paper: methods, cells and printed numbers.

Figures print no numbers in the main text: their cells have none here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Number of training images (Sec. 3.3, 4.1, 5.1) and epochs (the released files' names).
VISE_1M, VISE_250M = 1_230_000, 250_000_000
_IMAGENET = 1_280_000
EPOCHS = {"vise_1m": 100, "vise_250m": 10}
SUBSETS = {"123k": 123_000, "308k": 308_000, "615k": 615_000}

RESNET50, RESNET101, RESNEXT101 = "resnet50", "resnet101", "resnext101_32x16d"
BACKBONES = {RESNET50: "ResNet-50", RESNET101: "ResNet-101", RESNEXT101: "ResNeXt-101 32x16d"}


@dataclass(frozen=True)
class Method:
    """An encoder of the paper.

    Attributes:
        title: the paper's name.
        group: "random", "uni-modal", "cross-modal" or "VisE" (Sec. 4.1); "text" for the text encoder alone.
        backbone: an encoder of `models.ENCODERS`.
        source: `--source` of convert.py; "" = none.
        pretraining: config that trains it, below `configs/`; "" = none.
        posts: name of the posts that it is trained on; "" = none.
        examples: number of images it is trained on (Table 1; of the pairs of MoCo-v2 and CLIP, the images).
        epochs: over them, of VisE.
        heads: "comments alone" or "reactions alone" where VisE predicts one of them (Table 3).
    """

    title: str
    group: str
    backbone: str
    source: str = ""
    pretraining: str = ""
    posts: str = ""
    examples: int = 0
    epochs: int = 0
    heads: str = ""

    @property
    def name(self) -> str:
        """Title, backbone and heads: unlike the title, it names one method."""
        backbone = "" if self.group == "text" else f", {BACKBONES[self.backbone]}"
        return f"{self.title}{backbone}{f', {self.heads}' if self.heads else ''}"


def _vise(posts: str, backbone: str, subset: str = "", heads: str = "") -> Method:
    title = {"vise_1m": "VisE-1.2M", "vise_250m": "VisE-250M"}[posts]
    examples = SUBSETS.get(subset, {"vise_1m": VISE_1M, "vise_250m": VISE_250M}[posts])
    return Method(
        title=f"VisE-{subset}" if subset else title,
        group="VisE",
        backbone=backbone,
        # The authors released a ResNet-50 of each.
        source="vise" if backbone == RESNET50 and not subset and not heads else "",
        pretraining=f"{posts}.py:{','.join(filter(None, (backbone, subset, heads)))}",
        posts=posts,
        examples=examples,
        epochs=EPOCHS[posts],
        heads=f"{heads} alone" if heads else "",
    )


# By name, which names files too.
METHODS: dict[str, Method] = {
    **{f"random-{backbone}": Method("Random Init", "random", backbone) for backbone in BACKBONES},
    **{
        f"in_sup-{backbone}": Method("IN-Sup", "uni-modal", backbone, "torchvision", examples=_IMAGENET)
        for backbone in BACKBONES
    },
    f"ig_940m-{RESNEXT101}": Method("IG-940M-IN", "uni-modal", RESNEXT101, "wsl", examples=940_000_000 + _IMAGENET),
    f"moco-{RESNET50}": Method("MoCo-v2", "uni-modal", RESNET50, "moco", examples=_IMAGENET),
    f"vqagrid-{RESNET50}": Method("VQAGrid", "uni-modal", RESNET50, "vqagrid", examples=103_000),
    f"virtex-{RESNET50}": Method("VirTex", "cross-modal", RESNET50, "virtex", examples=118_000),
    f"icmlm_tfm-{RESNET50}": Method("ICMLM tfm", "cross-modal", RESNET50, "icmlm", examples=118_000),
    f"icmlm_att_fc-{RESNET50}": Method("ICMLM att-fc", "cross-modal", RESNET50, "icmlm", examples=118_000),
    f"clip-{RESNET50}": Method("CLIP", "cross-modal", RESNET50, "clip", examples=400_000_000),
    **{
        f"vise_1m-{backbone}-{subset}": _vise("vise_1m", backbone, subset)
        for backbone in (RESNET50, RESNEXT101)
        for subset in SUBSETS
    },
    **{f"vise_1m-{backbone}": _vise("vise_1m", backbone) for backbone in BACKBONES},
    **{f"vise_1m-{RESNET50}-{heads}": _vise("vise_1m", RESNET50, heads=heads) for heads in ("comments", "reactions")},
    **{f"vise_250m-{backbone}": _vise("vise_250m", backbone) for backbone in (RESNET50, RESNEXT101)},
    "text": Method("RoBERTa alone", "text", "roberta", "roberta"),
}


@dataclass(frozen=True)
class Column:
    """A column of a table, or the bars of a panel.

    Attributes:
        task: a task of `evaluation.tasks.TASKS`.
        protocol: "linear" or "finetune".
        setting: modalities; "" = the task's default.
        title: shown.
    """

    task: str
    protocol: str
    setting: str = ""
    title: str = ""

    @property
    def name(self) -> str:
        """Names files and directories."""
        return "-".join(filter(None, (self.task, self.protocol, self.setting)))

    @property
    def config(self) -> str:
        """The argument of `configs/eval.py`."""
        return ",".join(filter(None, (self.task, self.protocol, self.setting)))


TASKS = {"unbiased_emotion": "UnbiasedEmotion", "politics": "Politics", "hateful_memes": "Hateful Memes"}
_PROTOCOLS = {"linear": "linear", "finetune": "fine-tuned"}
_CUB = [Column("cub", protocol, title=title) for protocol, title in _PROTOCOLS.items()]
_SUBJECTIVE = [
    Column(task, protocol, title=f"{name}, {words}")
    for task, name in TASKS.items()
    for protocol, words in _PROTOCOLS.items()
]
_FINE_TUNED = [column for column in _SUBJECTIVE if column.protocol == "finetune"]
_MEMES = [
    Column("hateful_memes", "finetune", "image_text", "image + text, fine-tuned"),
    Column("hateful_memes", "finetune", "image_frozen_text", "image + frozen text, fine-tuned"),
    Column("hateful_memes", "finetune", "image", "image only, fine-tuned"),
    Column("hateful_memes", "linear", "image", "image only, linear"),
]
# Columns of the text encoder alone (Fig. 6).
TEXT_ALONE = [
    Column("hateful_memes", "finetune", "text", "text alone, fine-tuned"),
    Column("hateful_memes", "linear", "text", "text alone, linear"),
]

# A mean, and a standard deviation where the paper has one, as fractions; by method and column.
Printed = Mapping[tuple[str, str], tuple[float, float | None]]


@dataclass(frozen=True)
class Experiment:
    """A table or a figure.

    Attributes:
        title: its name and subject.
        methods: names of `METHODS`, the rows.
        columns: the columns, or panels.
        kind: "table", "bars", "sizes" (accuracy over the number of posts) or "maps".
        printed: the paper's numbers.
        reference: method whose difference to the others is shown; "" = none.
        dashed: methods that are dashed lines in the figure.
        alone: columns of the method "text".
    """

    title: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    kind: str = "bars"
    printed: Printed = field(default_factory=dict)
    reference: str = ""
    dashed: tuple[str, ...] = ()
    alone: tuple[Column, ...] = ()

    def cells(self) -> list[tuple[str, Column]]:
        """Return method and column of every cell, in the order of the rows."""
        rows = [(method, column) for method in self.methods for column in self.columns]
        return rows + [("text", column) for column in self.alone]


def _percent(rows: Mapping[str, tuple[float, float]], columns: list[Column]) -> Printed:
    return {
        (method, column.name): (value / 100, None)
        for method, values in rows.items()
        for column, value in zip(columns, values, strict=True)
    }


_TABLE2 = {
    f"random-{RESNET50}": (3.42, 63.39),
    f"in_sup-{RESNET50}": (62.70, 72.15),
    f"vise_1m-{RESNET50}": (9.95, 72.65),
    f"vise_250m-{RESNET50}": (9.92, 76.58),
    f"random-{RESNEXT101}": (7.04, 62.80),
    f"in_sup-{RESNEXT101}": (65.16, 84.21),
    f"ig_940m-{RESNEXT101}": (72.69, 85.28),
    f"vise_1m-{RESNEXT101}": (9.76, 73.73),
    f"vise_250m-{RESNEXT101}": (10.93, 79.54),
}
# In the order of `_SUBJECTIVE`: mean and deviation of UnbiasedEmotion, Politics, Hateful Memes; linear, fine-tuned.
_TABLE3 = {
    f"vise_1m-{RESNET50}": ((45.74, 2.15), (74.20, 1.93), (61.00,), (60.44,), (64.30,), (64.69,)),
    f"vise_1m-{RESNET50}-comments": ((49.15, 1.30), (72.16, 1.09), (60.05,), (59.21,), (63.43,), (63.81,)),
    f"vise_1m-{RESNET50}-reactions": ((33.05, 1.75), (70.03, 2.64), (60.52,), (59.80,), (63.09,), (63.42,)),
}
_UNI_MODAL = tuple(f"{name}-{RESNET50}" for name in ("in_sup", "moco", "vqagrid"))
_CROSS_MODAL = tuple(f"{name}-{RESNET50}" for name in ("virtex", "icmlm_tfm", "icmlm_att_fc", "clip"))
_OF_RESNET50 = (f"random-{RESNET50}", *_UNI_MODAL, *_CROSS_MODAL)
_OF_RESNEXT = tuple(f"{name}-{RESNEXT101}" for name in ("random", "in_sup", "ig_940m"))
_VISE = {name: tuple(f"{posts}-{name}" for posts in ("vise_1m", "vise_250m")) for name in (RESNET50, RESNEXT101)}
_SIZES = {name: tuple(f"vise_1m-{name}-{subset}" for subset in SUBSETS) for name in (RESNET50, RESNEXT101)}

EXPERIMENTS: dict[str, Experiment] = {
    "table2": Experiment(
        "Table 2: CUB-200-2011, top-1 accuracy",
        tuple(_TABLE2),
        tuple(_CUB),
        "table",
        _percent(_TABLE2, _CUB),
    ),
    "table3": Experiment(
        "Table 3: pre-training tasks of VisE-1.2M, ResNet-50",
        tuple(_TABLE3),
        tuple(_SUBJECTIVE),
        "table",
        {
            (method, column.name): (values[0] / 100, values[1] / 100 if len(values) > 1 else None)
            for method, row in _TABLE3.items()
            for column, values in zip(_SUBJECTIVE, row, strict=True)
        },
        reference=f"vise_1m-{RESNET50}",
    ),
    "fig3": Experiment(
        "Figure 3: VisE, uni-modal and cross-modal methods on the subjective tasks",
        (*_OF_RESNET50, *_VISE[RESNET50], *_OF_RESNEXT, *_VISE[RESNEXT101]),
        tuple(_SUBJECTIVE),
        dashed=(*_VISE[RESNET50], *_VISE[RESNEXT101]),
    ),
    "fig4": Experiment(
        "Figure 4: size of the pre-training data, fine-tuned",
        (
            *(*_OF_RESNET50, *_SIZES[RESNET50], *_VISE[RESNET50]),
            *(*_OF_RESNEXT, *_SIZES[RESNEXT101], *_VISE[RESNEXT101]),
        ),
        tuple(_FINE_TUNED),
        "sizes",
    ),
    "fig5": Experiment(
        "Figure 5: visual backbones, fine-tuned",
        tuple(f"{name}-{backbone}" for backbone in BACKBONES for name in ("random", "in_sup", "vise_1m")),
        tuple(_FINE_TUNED),
    ),
    "fig6": Experiment(
        "Figure 6: image and text on Hateful Memes",
        (*_OF_RESNET50, *_VISE[RESNET50]),
        tuple(_MEMES),
        printed={
            ("text", column.name): (value, None) for column, value in zip(TEXT_ALONE, (0.6363, 0.5983), strict=True)
        },
        dashed=_VISE[RESNET50],
        alone=tuple(TEXT_ALONE),
    ),
    "fig7": Experiment(
        "Figure 7: class activation maps on UnbiasedEmotion, ResNeXt-101 32x16d",
        # The main text doesn't name its four encoders.
        tuple(f"{name}-{RESNEXT101}" for name in ("in_sup", "ig_940m", "vise_1m", "vise_250m")),
        (Column("unbiased_emotion", "linear", title="UnbiasedEmotion, linear"),),
        "maps",
    ),
}
