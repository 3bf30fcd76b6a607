"""The encoders against torch's: activations, gradients, running statistics; and their published sizes."""

import importlib.util

import jax
import make_reference as reference
import numpy as np
import pytest
from flax import nnx

from vise_jax import models, variables
from vise_jax.errors import UserError

# The tests are about numbers: the compiler needn't try hard.
QUICK = {"xla_backend_optimization_level": 0}


def _fill(state, weights):
    flat = [(path, variable.replace(weights["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.from_flat_state(flat)


def _run(case, weights):
    """What `reference.run_torch` returns, by vise_jax."""
    width, batch, side = reference.CASES[case]
    images = reference.draw_images(batch, side)
    model = nnx.eval_shape(lambda: models.build(case, width=width))
    cotangent = reference.draw_cotangent(batch, model.feature_dim)
    graph, params, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)
    params, statistics = _fill(params, weights), _fill(statistics, weights)

    def in_train(params, statistics):
        def objective(params):
            network = nnx.merge(graph, params, statistics, copy=True)
            features, intermediates = network(images, train=True)
            return (features * cotangent).sum(), (intermediates["feature_map"], network)

        gradients, (feature_map, network) = jax.grad(objective, has_aux=True)(params)
        flat = {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(gradients)}
        moved = {path: value for path, value in variables.of_model(network).items() if path not in flat}
        return {"train": feature_map, "gradients": flat, "statistics": moved}

    def in_eval(params, statistics):
        return {"eval": nnx.merge(graph, params, statistics)(images, train=False)[1]["feature_map"]}

    found = {}
    for function in (in_train, in_eval):
        found |= jax.jit(function, compiler_options=QUICK)(params, statistics)
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case != "resnet18" else case for case in reference.CASES]
)
def test_equals_torch(case):
    biases, expected = reference.read(case)
    weights = reference.draw_weights(reference.shapes_of(case), biases)
    if importlib.util.find_spec("torch"):
        expected = reference.summarize(case, reference.run_torch(case, weights))
    found = reference.summarize(case, _run(case, weights))

    assert found.keys() == expected.keys()
    # Some biases only shift what the next batch norm centers: their gradient is nothing but rounding.
    floor = 0.01 * np.median([sketch[0] for name, sketch in expected.items() if name.startswith("gradients/")])
    for name, value in expected.items():
        if name.endswith("/features"):
            assert np.abs(found[name] - value).max() < 1e-4 * np.abs(value).max(), name
        elif name.startswith("gradients/"):
            assert reference.distance(found[name], value, floor) < 1e-3, name
        else:
            assert reference.distance(found[name], value) < 1e-4, name


def _count(name, **heads):
    model = nnx.eval_shape(lambda: models.build(name, **heads))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_32x16d", 194_026_792),
    ],
)
def test_has_torchvisions_number_of_parameters(name, count):
    assert _count(name, heads={"classes": 1000}) == count


def test_heads_add_their_parameters():
    bare = _count("resnet50")
    assert _count("resnet50", heads={"comments": 5000, "reactions": 128}) == bare + 2049 * 5128


def test_shapes_and_types_out():
    heads = {"comments": 5, "reactions": 3}
    model = nnx.eval_shape(lambda: models.build("resnet18", width=8, heads=heads, dtype="bfloat16"))
    logits, intermediates = nnx.eval_shape(lambda m: m(np.zeros((2, 64, 64, 3), np.float32), train=False), model)
    assert {name: (value.shape, value.dtype.name) for name, value in logits.items()} == {
        "comments": ((2, 5), "float32"),
        "reactions": ((2, 3), "float32"),
    }
    assert (intermediates["features"].shape, intermediates["features"].dtype) == ((2, 64), np.float32)
    assert (intermediates["feature_map"].shape, intermediates["feature_map"].dtype.name) == ((2, 2, 2, 64), "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model))} == {"float32"}


def test_cifar_stem_keeps_small_images():
    model = nnx.eval_shape(lambda: models.build("resnet18", width=8, stem="cifar"))
    feature_map = nnx.eval_shape(lambda m: m(np.zeros((1, 32, 32, 3), np.float32), train=False)[1], model)
    assert feature_map["feature_map"].shape == (1, 4, 4, 64)
    assert model.conv1.kernel.shape == (3, 3, 3, 8)


def test_zero_init_makes_blocks_the_identity():
    scales = {}
    for zero in (True, False):
        model = models.build("resnet18", width=8, zero_init_last_bn=zero)
        scales[zero] = [float(layer[0].bn2.scale[...].sum()) for layer in (model.layer1, model.layer4)]
        assert float(model.layer1[0].bn1.scale[...].sum()) == 8
    assert scales == {True: [0, 0], False: [8, 64]}


def test_seed_decides_the_weights():
    first, again, other = (variables.of_model(models.build("resnet18", width=8, seed=seed)) for seed in (1, 1, 2))
    assert all((first[path] == again[path]).all() for path in first)
    assert not (first["conv1/kernel"] == other["conv1/kernel"]).all()


def test_first_weights_spread_as_torchvisions():
    kernel = np.asarray(models.build("resnet18", seed=3).layer4[1].conv2.kernel[...])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet51"}, "resnet50, resnet101"),
        ({"name": "resnet18", "widht": 8}, "'widht'"),
        ({"name": "resnet18", "stem": "vit"}, "stem"),
        ({"name": "resnet18", "width": 0}, "width"),
        ({"name": "resnet18", "width": "wide"}, "must be an integer"),
        ({"name": "resnet18", "dtype": "float16"}, "dtype"),
        ({"name": "resnet18", "heads": {"comments": 0}}, "'comments'"),
        ({"name": "resnet18", "heads": {"classes": 0}}, "'classes'"),
        ({"name": "resnext101_32x16d", "width": 2}, "width"),
    ],
)
def test_invalid_arguments_are_reported(arguments, words):
    with pytest.raises(UserError, match=words):
        models.build(**arguments)


def test_detectron2s_norms_do_not_train():
    model = nnx.eval_shape(lambda: models.build("detectron2_resnet50", width=8))
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    assert len(paths) == 53
    assert all(path.endswith("/kernel") for path in paths)
    assert (model.layer2[0].conv1.stride, model.layer2[0].conv2.stride) == (2, 1)
