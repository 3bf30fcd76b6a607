r"""Reproduce a table or figure of the paper: run what is missing, then write a page beside the paper's numbers.

Below the workdir, as far as you have them (links will do; what is missing leaves its cells empty, with the reason):

    data/TASK          the datasets of docs/datasets.md: unbiased_emotion, politics, hateful_memes, cub
    weights/METHOD.*   published checkpoints, e.g. weights/moco-resnet50.pth, and weights/text/ for RoBERTa;
                       the plan has the names
    posts/vise_1m      posts files, to train VisE-1.2M on; posts/vise_250m
    encoders/METHOD    encoders of your own

The same command resumes. Results are in WORKDIR/results, the tables, the figure and the page in WORKDIR/EXPERIMENT. To
repeat a step, delete what it wrote.

EXAMPLE
    python scripts/reproduce.py --experiment table3 --workdir STUDY --dry-run
    python scripts/reproduce.py --experiment table3 --workdir STUDY
    python scripts/reproduce.py --experiment fig6 --workdir STUDY --evaluation finetune.epochs=1 \
        --evaluation image_size=32
"""

from pathlib import Path

from absl import flags

from vise_jax import cli
from vise_jax.errors import UserError

_EXPERIMENT = flags.DEFINE_enum(
    "experiment", None, ("table2", "table3", "fig3", "fig4", "fig5", "fig6", "fig7"), "The table or figure."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of data, weights, posts, and of everything that is written.")
_DRY_RUN = flags.DEFINE_bool("dry-run", False, "Print the plan, and run nothing.")
_PRETRAINING = flags.DEFINE_multi_string(
    "pretraining", [], "KEY=VALUE of the configs of label.py and train.py that differs from the paper; may be repeated."
)
_EVALUATION = flags.DEFINE_multi_string(
    "evaluation", [], "KEY=VALUE of the config of evaluate.py that differs from the default; may be repeated."
)
_SPEED = flags.DEFINE_multi_string(
    "images_per_second", [], "BACKBONE=NUMBER, the training speed to estimate device hours from; may be repeated."
)


def main(words: list[str]) -> None:
    """Print the plan, or run it and write the report."""
    cli.no_words(words)
    name, workdir = cli.required(_EXPERIMENT), cli.path(_WORKDIR).absolute()
    from vise_jax.reproduction import paper, plan, run

    for flag in (_PRETRAINING, _EVALUATION):
        for setting in flag.value:
            if "=" not in setting:
                raise UserError(f"--{flag.name}={setting} is no KEY=VALUE of a config: see --help for an example.")
    speeds = dict(plan.MEASURED)
    for word in _SPEED.value:
        backbone, _, speed = word.partition("=")
        if backbone not in paper.BACKBONES or not speed.replace(".", "", 1).isdigit() or not float(speed):
            raise UserError(
                f"--images_per_second={word} is no BACKBONE=NUMBER: give one of {', '.join(paper.BACKBONES)}."
            )
        speeds[backbone] = float(speed)
    settings = plan.Settings(tuple(_PRETRAINING.value), tuple(_EVALUATION.value))
    planned = plan.Plan(paper.EXPERIMENTS[name], workdir, settings)
    if _DRY_RUN.value:
        run.show(planned, speeds, measured=not _SPEED.value)
        return
    if _SPEED.value:
        raise UserError("--images_per_second is for --dry-run, whose device hours it decides: leave it out.")
    if not workdir.is_dir():
        raise UserError(f"{workdir} is no directory: make it, with what --dry-run says is needed.")
    from vise_jax.reporting import study

    try:
        run.run(planned, Path(__file__).parents[1])
    finally:
        # What there is after a failure is worth a page, too.
        study.write(planned, workdir / name)


if __name__ == "__main__":
    cli.run(main, __doc__)
