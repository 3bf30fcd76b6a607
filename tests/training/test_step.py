"""The training step is the same however the batch is divided, and exchanges no more than it has to."""

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vise_jax import config as vise_config
from vise_jax import models
from vise_jax.preprocessing import Preprocessing, normalize
from vise_jax.training import engagement_loss, pretrain, sharding
from vise_jax.training import state as train_state
from vise_jax.training.evaluators import make_evaluation_step
from vise_jax.training.step import make_train_step

HEADS = {"comments": 5, "reactions": 3}
BATCH = 16


def draw_batch(draw: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "images": draw.integers(0, 256, (BATCH, 32, 32, 3), np.uint8),
        "comment_labels": draw.integers(-1, 5, (BATCH, 2), np.int32),
        "comment_weights": np.ones((BATCH, 2), np.float32),
        "reaction_label": draw.integers(-1, 3, BATCH, np.int32),
    }


def control_inputs() -> dict[str, np.ndarray]:
    return {
        "corrupt": np.array([1, 0] * (BATCH // 2), np.int32),
        "signals": np.array([[2, 0, 0]] + [[0, 1, 0]] * (BATCH - 1), np.int32),
    }


def prepare(
    devices: int,
    bn_group: int,
    microbatches: int = 1,
    remat: tuple[int, ...] = (),
    steps: int = 10,
    learning_rate: float = 0.1,
):
    config = vise_config.base()
    config.data.image_size = 32
    config.training.batch_size = BATCH
    config.training.microbatches = microbatches
    config.training.steps = steps
    config.training.learning_rate = learning_rate
    config.model.bn_group = bn_group
    mesh = sharding.data_mesh(jax.devices()[:devices])
    layout = sharding.layout(BATCH, devices, microbatches=microbatches, bn_group=bn_group)
    model = models.build("tiny", width=4, heads=HEADS, bn_group=layout.bn_group, remat=remat)
    _, optimizer = pretrain.make_optimizer(config.training, steps)
    graphdef, state = train_state.create(model, optimizer, layout)
    state = jax.device_put(state, train_state.shardings(mesh, layout))
    return config, mesh, layout, graphdef, state, compile_step(config, mesh, layout, graphdef)


def compile_step(config, mesh, layout, graphdef):
    task = pretrain.make_task(config, {"examples": 100, "validation": {"examples": 0}}, build=None)
    rate, optimizer = pretrain.make_optimizer(config.training, config.training.steps)
    step = make_train_step(graphdef, task, optimizer, rate, seed=0, mesh=mesh, layout=layout)
    control = sharding.put_batch(mesh, control_inputs())
    return Step(step, control)


class Step(NamedTuple):
    """A compiled step with its control inputs."""

    step: Callable
    control: dict

    def __call__(self, state, batch):
        return self.step(state, batch, self.control)

    def lower(self, state, batch):
        return self.step.lower(state, batch, self.control)


def run(*how, **settings) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Three steps: their metrics, and the weights with merged statistics."""
    _, mesh, _, _, state, step = prepare(*how, **settings)
    draw, found = np.random.default_rng(0), []
    for _ in range(3):
        state, metrics = step(state, sharding.put_batch(mesh, draw_batch(draw)))
        np.testing.assert_array_equal(metrics.pop("signals"), [2, BATCH - 1, 0])
        found.append({name: float(value) for name, value in metrics.items()})
    assert int(state.step) == 3
    weights = train_state.named_leaves(train_state.on_one_device(state, mesh))
    return found, {name: np.asarray(leaf) for name, leaf in weights.items()}


@pytest.mark.parametrize(
    ("bn_group", "ways"),
    [
        (0, [(1, 1), (4, 1)]),
        # 8 examples a microbatch in two groups; on four devices a group lies on two of them.
        (4, [(1, 1), (4, 1), (2, 2), (4, 2)]),
    ],
)
def test_a_step_does_not_depend_on_devices_and_microbatches(bn_group, ways):
    (metrics, weights), *others = [run(devices, bn_group, parts) for devices, parts in ways]
    assert [record["corrupt_examples"] for record in metrics] == [8, 16, 24]
    for other_metrics, other_weights in others:
        for record, other in zip(metrics, other_metrics, strict=True):
            assert record.keys() == other.keys()
            for name, value in record.items():
                # Rounding moves units over the edge of ReLU, which gradients show before losses do.
                assert other[name] == pytest.approx(value, rel=1e-3 if name == "gradient_norm" else 1e-5), name
        for name, value in weights.items():
            np.testing.assert_allclose(other_weights[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_rematerialized_stages_change_nothing():
    (metrics, weights), (other_metrics, other_weights) = run(2, 8), run(2, 8, remat=(1, 2))
    assert [record["loss"] for record in other_metrics] == pytest.approx(
        [record["loss"] for record in metrics], rel=1e-5
    )
    for name, value in weights.items():
        np.testing.assert_allclose(other_weights[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_one_step_is_what_a_plain_loop_over_the_devices_computes():
    """Each device's examples are normalized alone; gradients are those of Eq. 1 over the whole batch."""
    _, mesh, _, _, state, step = prepare(4, bn_group=4)
    batch = draw_batch(np.random.default_rng(1))
    model = models.build("tiny", width=4, heads=HEADS, bn_group=0)
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    flipped = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), 0), shape=(BATCH,))
    images = np.where(np.asarray(flipped)[:, None, None, None], batch["images"][:, :, ::-1], batch["images"])
    images = normalize(jnp.asarray(images), Preprocessing.imagenet(32))

    def loss_of(params):
        logits, running = [], []
        for start in range(0, BATCH, 4):
            network = nnx.merge(graph, params, statistics, copy=True)
            logits.append(network(images[start : start + 4], train=True)[0])
            running.append(nnx.state(network, nnx.BatchStat))
        whole = {head: jnp.concatenate([part[head] for part in logits]) for head in HEADS}
        labels = {name: jnp.asarray(value) for name, value in batch.items()}
        return engagement_loss.engagement_loss(whole, labels)[0], running

    gradients, running = jax.jit(jax.grad(loss_of, has_aux=True))(params)
    after, metrics = step(state, sharding.put_batch(mesh, batch))
    assert float(metrics["gradient_norm"]) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-5)
    rate = float(metrics["learning_rate"])
    decayed = jax.tree.map(lambda p, g: p - rate * (g + (1e-4 if p.ndim > 1 else 0.0) * p), params, gradients)
    for name, value in train_state.named_leaves(decayed).items():
        np.testing.assert_allclose(train_state.named_leaves(after.params)[name], value, atol=1e-6, err_msg=name)
    for device, expected in enumerate(running):
        for name, value in train_state.named_leaves(expected).items():
            found = train_state.named_leaves(after.batch_stats)[name][device]
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=name)


COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>(ragged-)?all-(reduce|gather|to-all)|reduce-scatter|collective-[a-z]+)(-start)?\("
)


def collectives(devices: int, bn_group: int, microbatches: int = 1) -> list[tuple[str, int]]:
    """Return kind and number of elements of each collective of the compiled step."""
    _, mesh, _, _, state, step = prepare(devices, bn_group, microbatches)
    batch = sharding.put_batch(mesh, draw_batch(np.random.default_rng(0)))
    found = []
    for line in step.lower(state, batch).compile().as_text().splitlines():
        if match := COLLECTIVE.search(line):
            shapes = re.findall(r"\w\d+\[([\d,]*)\]", match["shapes"])
            sizes = [int(np.prod([int(side) for side in shape.split(",") if side])) for shape in shapes]
            found.append((match["kind"], sum(sizes)))
    return found


@pytest.mark.parametrize("microbatches", [1, 2])
def test_local_groups_exchange_gradients_once_and_nothing_else(microbatches):
    parameters = sum(leaf.size for leaf in jax.tree.leaves(prepare(4, 2)[4].params))
    found = collectives(4, 2, microbatches)
    assert {kind for kind, _ in found} == {"all-reduce"}
    sizes = sorted(size for _, size in found)
    # The gradients, perhaps once where two are the same (biases of the norms whose outputs a block adds up), with a
    # loss for each head; before them two counts of labels, one of corrupt examples, three signals.
    assert sizes[-1] in (parameters + 2, parameters - 8 + 2)
    assert sum(sizes[:-1]) <= 6


def test_global_groups_exchange_statistics():
    assert len(collectives(4, 0)) > 10


def test_flips_change_the_loss_of_images_that_are_not_symmetric_and_only_if_requested():
    config, mesh, layout, graphdef, state, step = prepare(1, 0)
    config = copy.deepcopy(config)
    config.data.flip = False
    plain = compile_step(config, mesh, layout, graphdef)
    batch = draw_batch(np.random.default_rng(0))
    even = batch | {"images": np.concatenate([batch["images"][:, :, :16], batch["images"][:, :, :16][:, :, ::-1]], 2)}
    copies = [jax.tree.map(jnp.copy, state) for _ in range(3)]
    losses = [float(plain(copies[0], sharding.put_batch(mesh, batch))[1]["loss"])]
    losses += [float(step(copies[1], sharding.put_batch(mesh, batch))[1]["loss"])]
    assert abs(losses[0] - losses[1]) > 1e-4
    # Images that are their own mirror images don't change.
    same = [
        float(make(copy, sharding.put_batch(mesh, even))[1]["loss"])
        for make, copy in ((plain, copies[2]), (step, state))
    ]
    assert same[0] == pytest.approx(same[1], rel=1e-6)


def test_an_evaluation_sums_over_labeled_examples():
    _, mesh, layout, graphdef, state, _ = prepare(4, 4)
    batch = draw_batch(np.random.default_rng(2))
    to_input = partial(normalize, preprocessing=Preprocessing.imagenet(32))
    step = make_evaluation_step(graphdef, to_input, mesh, layout)
    sums = {
        name: float(value)
        for name, value in step(state.params, state.batch_stats, sharding.put_batch(mesh, batch)).items()
    }
    model = nnx.merge(graphdef, train_state.on_one_device(state, mesh))
    logits, _ = model(normalize(jnp.asarray(batch["images"]), Preprocessing.imagenet(32)), train=False)
    known = batch["reaction_label"] >= 0
    log_probabilities = np.asarray(jax.nn.log_softmax(logits["reactions"]))[known, batch["reaction_label"][known]]
    assert sums["labeled_reactions"] == known.sum()
    assert sums["loss_reactions"] == pytest.approx(-log_probabilities.sum(), rel=1e-5)
    hits = np.asarray(logits["reactions"]).argmax(1)[known] == batch["reaction_label"][known]
    assert sums["top1_reactions"] == hits.sum()
    assert sums["top5_reactions"] == known.sum()
    assert sums["labeled_comments"] == (batch["comment_labels"] >= 0).any(1).sum()
    assert 0 < sums["top1_comments"] < sums["top5_comments"] <= sums["labeled_comments"]


def test_a_batch_is_learned():
    config, mesh, _, _, state, step = prepare(devices=1, bn_group=0, steps=30, learning_rate=3.2)
    batch, losses = sharding.put_batch(mesh, draw_batch(np.random.default_rng(0))), []
    for _ in range(config.training.steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    # Images of noise cannot be told apart by chance: they are learned by heart.
    assert losses[-1] < losses[0] / 2
