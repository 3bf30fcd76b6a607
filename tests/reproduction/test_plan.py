"""The plans list every cell of the paper, and their commands are ones that the scripts take."""

from pathlib import Path

import pytest

from vise_jax import config as vise_config
from vise_jax.errors import UserError
from vise_jax.evaluation.tasks import TASKS
from vise_jax.interop import SOURCES, TEXT_SOURCES
from vise_jax.reproduction import run
from vise_jax.reproduction.paper import EXPERIMENTS, METHODS
from vise_jax.reproduction.plan import Plan, Settings, Step

ROOT = Path(__file__).parents[2]
# Cells of the paper: rows times columns, and the text encoder alone in Figure 6.
CELLS = {"table2": 9 * 2, "table3": 3 * 6, "fig3": 15 * 6, "fig4": 21 * 3, "fig5": 9 * 3, "fig6": 10 * 4 + 2, "fig7": 4}


def with_everything(workdir: Path) -> Path:
    """Make a workdir in which nothing is missing. VisE is trained; other encoders are converted."""
    for task in TASKS:
        (workdir / "data" / task).mkdir(parents=True)
    (workdir / "data" / "unbiased_emotion" / "images").mkdir()
    (workdir / "weights" / "text").mkdir(parents=True)
    for name, method in METHODS.items():
        if method.source and method.group != "VisE":
            (workdir / "weights" / f"{name}.pth").touch()
    for posts in ("vise_1m", "vise_250m"):
        (workdir / "posts" / posts).mkdir(parents=True)
        (workdir / "posts" / posts / "posts.jsonl").touch()
    return workdir


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_cell_has_a_measurement(name, tmp_path):
    experiment = EXPERIMENTS[name]
    cells = [(method, column.name) for method, column in experiment.cells()]
    assert len(cells) == len(set(cells)) == CELLS[name]
    steps = Plan(experiment, tmp_path).steps
    outputs = [step.output for step in steps]
    assert len(outputs) == len(set(outputs))
    for method, column in experiment.cells():
        assert Plan(experiment, tmp_path).results(method, column) in outputs
    # Without data, nothing but the random encoders' features could be computed, and they lack images, too.
    assert all(step.needs for step in steps)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_resolves(name, tmp_path, load_config):
    plan = Plan(EXPERIMENTS[name], with_everything(tmp_path), Settings(("training.steps=3",), ("batch_size=8",)))
    made = set()
    for step in plan.steps:
        assert not step.needs, step
        script, *words = step.words
        source = (ROOT / script).read_text()
        # Scripts that read a config define its flag in vise_jax.cli.
        config = None
        for flag, value in zip(words, [*words[1:], ""], strict=True):
            if flag == "--config":
                config = load_config(value)
                vise_config.validate(config)
            elif flag.startswith("--config."):
                key, _, _ = flag.removeprefix("--config.").partition("=")
                assert key in vise_config.flat(config)
            elif flag.startswith("--"):
                assert f'"{flag.removeprefix("--")}"' in source, flag
        # Each path is there, or is written by this command or by one before it.
        paths = [Path(word.removesuffix("/*.json")) for word in words if word.startswith(str(tmp_path))]
        paths += [Path(word.split("=")[1]) for word in words if word.startswith("--config.data.shards=")]
        for path in paths:
            written = {*made, step.output, *(output.parent for output in (step.output, *made))}
            is_there = path.exists() or any(path.parent.glob(path.name))
            assert path in written or is_there, (step.name, path)
        made |= {step.output}
        if script == "scripts/convert.py":
            assert words[words.index("--source") + 1] in SOURCES.keys() | TEXT_SOURCES.keys()


def test_printed_numbers():
    """By hand from the paper's Tables 2 and 3, and the caption of Figure 6."""
    assert [len(experiment.printed) for experiment in EXPERIMENTS.values()] == [18, 18, 0, 0, 0, 2, 0]
    table2, table3 = EXPERIMENTS["table2"].printed, EXPERIMENTS["table3"].printed
    assert table2["vise_250m-resnext101_32x16d", "cub-finetune"] == (pytest.approx(0.7954), None)
    assert table2["random-resnet50", "cub-linear"] == (pytest.approx(0.0342), None)
    both = table3["vise_1m-resnet50-reactions", "unbiased_emotion-finetune"]
    assert both == (pytest.approx(0.7003), pytest.approx(0.0264))
    assert table3["vise_1m-resnet50-comments", "politics-linear"] == (pytest.approx(0.6005), None)
    assert EXPERIMENTS["fig6"].printed["text", "hateful_memes-linear-text"] == (0.5983, None)
    # They are also in the docstring of configs/eval.py.
    document = (ROOT / "configs" / "eval.py").read_text()
    for mean, _ in table2.values():
        assert f"{100 * mean:.2f}" in document
    for (_, column), (mean, _) in table3.items():
        assert (f"{mean:.4f}" if "politics" in column else f"{100 * mean:.2f}") in document


def test_what_is_there_decides_how_an_encoder_is_got(tmp_path):
    plan = Plan(EXPERIMENTS["table3"], tmp_path)
    assert plan.steps[0].needs == ("posts/vise_1m or weights/vise_1m-resnet50.*",)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vise_1m-resnet50.pth").touch()
    first = Plan(EXPERIMENTS["table3"], tmp_path).steps[0]
    assert first.words[:3] == ("scripts/convert.py", "--source", "vise")
    assert not first.needs
    (tmp_path / "weights" / "vise_1m-resnet50.pth").unlink()
    (tmp_path / "encoders" / "vise_1m-resnet50").mkdir(parents=True)
    plan = Plan(EXPERIMENTS["table3"], tmp_path)
    assert plan.steps[0].needs == ("data/unbiased_emotion",)
    assert str(tmp_path / "encoders" / "vise_1m-resnet50") in plan.steps[0].words


def test_other_settings_have_other_directories(tmp_path):
    workdir = with_everything(tmp_path)
    plain, evaluated, trained = (
        Plan(EXPERIMENTS["table3"], workdir, settings)
        for settings in (
            Settings(),
            Settings(evaluation=("batch_size=2",)),
            Settings(pretraining=("training.steps=3",)),
        )
    )
    method, column = EXPERIMENTS["table3"].cells()[0]
    results = {plan.results(method, column) for plan in (plain, evaluated, trained)}
    assert len(results) == 3
    assert plain.run(method) == evaluated.run(method) != trained.run(method)
    assert len({Plan(EXPERIMENTS["fig7"], workdir, plan.settings).maps for plan in (plain, evaluated, trained)}) == 3


def test_labeling_that_was_interrupted_is_not_done(tmp_path):
    [label] = [step for step in Plan(EXPERIMENTS["table3"], tmp_path).steps if step.name == "vise_1m: label"]
    label.output.mkdir(parents=True)
    (label.output / "job.json").touch()
    assert not label.is_done
    (label.output / "manifest.json").touch()
    assert label.is_done


def test_hours():
    step = Step("train", (), Path("run"), work=7200.0, backbone="resnet50")
    assert step.hours({"resnet50": 2.0}) == 1.0
    assert step.hours({}) is None
    # 1.23 million images, 100 epochs, 3.77 images/s.
    plan = Plan(EXPERIMENTS["table3"], Path("nowhere"))
    (train, *_) = [step for step in plan.steps if step.name.endswith("train")]
    assert train.hours({"resnet50": 3.77}) == pytest.approx(123e6 / 3.77 / 3600)


def made(plan: Plan, steps: list[Step]) -> Plan:
    plan.__dict__["steps"] = steps
    return plan


def writes(output: Path, before: str = "0") -> tuple[str, ...]:
    return "-c", f"import pathlib; {before}; p = pathlib.Path({str(output)!r}); p.mkdir(); (p / 'a.json').touch()"


def test_run_takes_the_steps_that_are_left_and_resumes(tmp_path, capfd):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    steps = [
        Step("first", writes(first), first),
        Step("without data", writes(tmp_path / "never"), tmp_path / "never", needs=("data/cub",)),
        Step("second", ("-c", "raise SystemExit(3)"), second),
        Step("third", writes(third), third),
    ]
    plan = made(Plan(EXPERIMENTS["table2"], tmp_path), steps)
    with pytest.raises(UserError, match="Step 3, second, ended with exit status 3"):
        run.run(plan, ROOT)
    assert first.is_dir()
    assert not third.exists()
    steps[2] = Step("second", writes(second, "print('made')"), second)
    run.run(plan, ROOT)
    out = capfd.readouterr().out
    assert out.count("] first") == 1
    assert third.is_dir()
    assert not (tmp_path / "never").exists()
    run.show(plan, {}, measured=True)
    shown = capfd.readouterr().out
    assert "needs data/cub" in shown
    assert "1 of 4 steps are left" in shown


def test_a_command_that_writes_nothing_is_reported(tmp_path):
    plan = made(Plan(EXPERIMENTS["table2"], tmp_path), [Step("idle", ("-c", "0"), tmp_path / "idle")])
    with pytest.raises(UserError, match="Step 1, idle, has not written"):
        run.run(plan, ROOT)


def test_a_glob_stands_for_the_one_result(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    out = tmp_path / "out"
    words = ("-c", f"import sys, pathlib; assert sys.argv[1].endswith('x.json'); pathlib.Path({str(out)!r}).touch()")
    step = Step("maps", (*words, f"{tmp_path}/results/*.json"), out)
    run.run(made(Plan(EXPERIMENTS["fig7"], tmp_path), [step]), ROOT)
    assert out.exists()
