"""Every experiment resolves, every key is documented, and a wrong value is named."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.errors import UserError

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.py") if path.name != "eval.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_resolves_and_says_how_it_is_run(path):
    module = load(path)
    config = module.get_config()
    vise_config.validate(config)
    assert config.is_locked
    assert config.model.name in models.ENCODERS
    assert re.search(r"^COMMAND ", module.__doc__, re.M)
    assert re.search(r"^EXPECTED ", module.__doc__, re.M)


@pytest.mark.parametrize("name", ["vise_1m", "vise_250m"])
@pytest.mark.parametrize("encoder", ["resnet50", "resnet101", "resnext101_32x16d"])
def test_the_papers_experiments_take_the_encoder(name, encoder):
    config = load(ROOT / "configs" / f"{name}.py").get_config(encoder)
    vise_config.validate(config)
    assert config.model.name == encoder
    assert config.training.epochs == {"vise_1m": 100, "vise_250m": 10}[name]
    assert config.training.batch_size == 1536


def test_the_subsets_of_figure_4_are_shares_of_the_training_posts():
    get_config = load(ROOT / "configs" / "vise_1m.py").get_config
    shares = [get_config(f"resnet101{subset}").labels.train_fraction for subset in (",123k", ",308k", ",615k", "")]
    assert [round(share * 1_230_000) for share in shares] == [123_000, 308_000, 615_000, 1_230_000]
    assert get_config("resnet101,123k").model.name == "resnet101"
    with pytest.raises(UserError, match="no '1k': choose from 123k, 308k, 615k, comments, reactions"):
        get_config("resnet50,1k")


def test_the_heads_of_table_3():
    get_config = load(ROOT / "configs" / "vise_1m.py").get_config
    assert get_config("resnet50").model.heads == ("comments", "reactions")
    for head in ("comments", "reactions"):
        config = get_config(f"resnet50,{head}")
        vise_config.validate(config)
        assert config.model.heads == (head,)
        assert config.labels.train_fraction == 1


def test_evaluations_resolve():
    config = load(ROOT / "configs" / "eval.py").get_config("folder,linear")
    vise_config.validate(config)
    assert (config.task, config.protocol) == ("folder", "linear")


@pytest.mark.parametrize("make", [vise_config.base, vise_config.evaluation])
def test_every_default_is_allowed_and_explained(make):
    vise_config.validate(make())
    source = (ROOT / "vise_jax" / "config.py").read_text(encoding="utf-8")
    for key in vise_config.flat(make()):
        assert re.search(rf'^    "{key.split(".")[-1]}": \(', source, re.M), key


def test_an_unknown_key_is_an_error():
    with pytest.raises(AttributeError, match="momentun"):
        vise_config.base().training.momentun = 0.9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels.comment_clusters", 0),
        ("labels.cluster_fraction", 1.0),
        ("labels.label_weights", "sum"),
        ("labels.comment_encoder", "bert"),
        ("labels.token_weights", "sif"),
        # LSA takes no vectors, and the others need them.
        ("labels.vectors", "glove.txt"),
        ("data.crop_area", (0.5, 0.1)),
        ("model.stem", "vit"),
        ("model.heads", ()),
        ("model.heads", ("comments", "likes")),
        ("training.batch_size", 0),
        ("training.steps", -3),
        ("training.momentum", 1.0),
        # Elements of another type.
        ("data.crop_area", ("a", "b")),
        ("training.adam_betas", ("a", "b")),
        ("training.remat", ([1],)),
        ("profile.steps", (1.5, 2.5)),
    ],
)
def test_a_wrong_value_is_named(key, value):
    config = vise_config.base()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=re.escape(key)):
        vise_config.validate(config)


@pytest.mark.parametrize("encoder", ["word_vectors", "static"])
def test_encoders_with_vectors_need_them(encoder):
    config = vise_config.base()
    config.labels.comment_encoder = encoder
    with pytest.raises(UserError, match=r"labels\.vectors is ''"):
        vise_config.validate(config)
    config.labels.vectors = "vectors"
    vise_config.validate(config)


CELLS = [
    f"{task},{protocol}"
    for task in ("unbiased_emotion", "politics", "hateful_memes", "cub", "folder")
    for protocol in ("linear", "finetune", "knn", "lowshot")
]
CELLS += [
    f"hateful_memes,{protocol},{setting}"
    for protocol, settings in {
        "finetune": ("image_text", "image_frozen_text", "image", "text"),
        "linear": ("image_text", "image", "text"),
    }.items()
    for setting in settings
]


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_of_the_papers_evaluation_resolves(cell):
    from vise_jax.evaluation.evaluators import PROTOCOLS
    from vise_jax.evaluation.tasks import SETTINGS, TASKS

    config = load(ROOT / "configs" / "eval.py").get_config(cell)
    vise_config.validate(config)
    task, protocol, *setting = cell.split(",")
    assert (config.task, config.protocol, config.setting) == (task, protocol, "".join(setting))
    assert task in TASKS
    assert protocol in PROTOCOLS
    assert (config.setting or TASKS[task].setting.get(protocol, "image")) in SETTINGS


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("linear.l2", (), "numbers above 0"),
        ("knn.k", (0,), "integers of at least 1"),
        ("finetune.trainable", "body", '"all" or "head"'),
        ("finetune.weight_decays", (-1.0,), "at least 0"),
        ("leak_distance", 65, "between 0 and 64"),
    ],
)
def test_evaluation_values_that_are_refused(key, value, message):
    config = vise_config.evaluation()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"{re.escape(key)} is .*{message}"):
        vise_config.validate(config)


def test_shares_must_leave_something_for_test():
    config = vise_config.evaluation()
    config.train_fraction, config.validation_fraction = 0.9, 0.1
    with pytest.raises(UserError, match="train_fraction"):
        vise_config.validate(config)


def test_keys_that_are_added_or_missing_are_named():
    config = vise_config.base()
    with config.unlocked():
        config.training.stepz = 3
    with pytest.raises(UserError, match=r"unknown key training\.stepz"):
        vise_config.validate(config)
    with config.unlocked():
        del config.training.stepz
        del config.data.shards
    with pytest.raises(UserError, match=r"lacks the key data\.shards"):
        vise_config.validate(config)


def test_something_must_be_left_to_train_on():
    config = vise_config.base()
    config.labels.update(cluster_fraction=0.6, validation_fraction=0.4)
    with pytest.raises(UserError, match="leave nothing to train on"):
        vise_config.validate(config)
