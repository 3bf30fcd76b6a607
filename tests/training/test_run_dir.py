"""Whose a run directory is, and what a run starts from."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vise_jax import config as vise_config
from vise_jax import models, variables
from vise_jax.encoder import Encoder
from vise_jax.errors import UserError
from vise_jax.preprocessing import Preprocessing
from vise_jax.training import run_dir

HEADS = {"comments": 3, "reactions": 2}


def test_a_run_of_other_shards_is_refused(tmp_path):
    def claim(shards: str, bn_group: int) -> int:
        with run_dir.acquire(tmp_path / "run", vise_config.flat(config), [shards], bn_group) as run:
            return run.bn_group

    config = vise_config.base()
    assert claim("these shards", 8) == 8
    config.training.checkpoint_every = config.training.log_every = config.training.evaluate_every = 17
    config.training.probe = "elsewhere"
    config.labels.seed = 9
    # On twice as many devices: the groups of batch norm stay.
    assert claim("these shards", 4) == 8
    with pytest.raises(UserError, match="the shards differ"):
        claim("other shards", 8)
    config.training.momentum, config.data.flip = 0.5, False
    with pytest.raises(UserError, match=r"\(data\.flip, training\.momentum differ\)"):
        claim("these shards", 8)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["training.momentum"] == 0.9


def test_a_run_resumes_after_a_deletion(tmp_path):
    config = vise_config.base()
    with run_dir.acquire(tmp_path / "run", vise_config.flat(config), ["first"], 8) as acquired:
        assert acquired[2:] == (8, "first")
    with run_dir.acquire(tmp_path / "run", vise_config.flat(config), ["third", "first", "second"], 8) as acquired:
        assert acquired[2:] == (8, "first")


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with (
        pytest.raises(UserError, match="no run directory"),
        run_dir.acquire(tmp_path, vise_config.flat(vise_config.base()), [""], 8),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_process_in_a_run_directory_is_refused(tmp_path):
    config = vise_config.base()
    with (
        run_dir.acquire(tmp_path / "run", vise_config.flat(config), ["shards"], 8),
        pytest.raises(UserError, match=r"Another process trains in .*run"),
        run_dir.acquire(tmp_path / "run", vise_config.flat(config), ["shards"], 8),
    ):
        pass
    with run_dir.acquire(tmp_path / "run", vise_config.flat(config), ["shards"], 8):
        pass


def saved(tmp_path, preprocessing=None, **architecture):
    architecture = {"name": "tiny", "width": 4, **architecture}
    model = models.build(**architecture, seed=5)
    encoder = Encoder.from_model(
        model,
        architecture=architecture,
        preprocessing=preprocessing or Preprocessing.imagenet(),
        provenance={},
        license="none needed",
    )
    encoder.save(tmp_path / "encoder")
    return model


@pytest.mark.parametrize("heads", [None, {"comments": 7}])
def test_a_run_starts_from_an_encoder_without_its_heads(tmp_path, heads):
    source = saved(tmp_path, **({} if heads is None else {"heads": heads}))
    model = models.build("tiny", width=4, heads=HEADS, seed=0)
    head = np.asarray(model.heads["comments"].kernel[...])
    run_dir.warm_start(model, tmp_path / "encoder", Preprocessing.imagenet())
    expected = variables.of_model(source if heads is None else source.encoder)
    found = variables.of_model(model.encoder)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    np.testing.assert_array_equal(model.heads["comments"].kernel[...], head)
    assert model(jnp.zeros((1, 32, 32, 3)), train=False)[0]["comments"].shape == (1, 3)


def test_an_encoder_of_another_architecture_is_refused(tmp_path):
    saved(tmp_path, width=8)
    model = models.build("tiny", width=4, heads=HEADS)
    with pytest.raises(
        UserError, match="another architecture than the config's: bn1/bias, bn1/mean, bn1/scale, bn1/var"
    ):
        run_dir.warm_start(model, tmp_path / "encoder", Preprocessing.imagenet())


def test_an_encoder_for_other_images_is_refused(tmp_path):
    saved(tmp_path, preprocessing=replace(Preprocessing.imagenet(), color="BGR"))
    model = models.build("tiny", width=4, heads=HEADS)
    with pytest.raises(UserError, match="takes images with color BGR, training prepares them with RGB"):
        run_dir.warm_start(model, tmp_path / "encoder", Preprocessing.imagenet())


def test_programs_are_kept_in_the_run_directory_unless_jax_has_a_cache(tmp_path):
    of_tests = jax.config.jax_compilation_cache_dir
    try:
        run_dir.cache_compilations(tmp_path)
        assert jax.config.jax_compilation_cache_dir == of_tests
        jax.config.update("jax_compilation_cache_dir", None)
        run_dir.cache_compilations(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compilation_cache")
    finally:
        jax.config.update("jax_compilation_cache_dir", of_tests)
