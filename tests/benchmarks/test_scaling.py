"""The benchmark of scaling: it finds every collective of a program and knows a wrong one; its formulas by hand."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

ROOT = Path(__file__).parents[2]

# As XLA's CPU compiler writes them (jax 0.10.2), with some of a tuple's arrays left out; the last two lines are none.
CAPTURED = """
  %all-reduce.5 = (s32[], s32[2]{0}) all-reduce(%wrapped_reduce, %wrapped_reduce.201), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}, use_global_device_ids=true, to_apply=%region_568.569, \
metadata={op_name="jit(train_step)/shard_map/psum" stack_frame_id=512}
  %all-reduce.7 = (f32[64]{0}, f32[7,7,3,64]{3,2,1,0}, f32[], /*index=5*/bf16[3,64]{1,0}) all-reduce(%a, %b, %c, %d), \
channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%region, metadata={op_name="psum"}
  ROOT %reduce_scatter.8 = f32[2,3]{1,0} reduce-scatter(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %get-tuple-element.1 = f32[64]{0} get-tuple-element(%all-reduce.7), index=0, metadata={op_name="psum"}
  %add.2 = f32[64]{0} add(%all-reduce.7, %get-tuple-element.1)
"""


@pytest.fixture(scope="module")
def scaling(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("scaling")


def test_collectives_of_a_captured_program(scaling: ModuleType) -> None:
    counts, tuple_, scattered = scaling.parse_collectives(CAPTURED)
    assert counts == ("all-reduce", 2, 3, 12, 8, "jit(train_step)/shard_map/psum")
    elements = 64 + 7 * 7 * 3 * 64 + 1 + 3 * 64
    assert tuple_ == ("all-reduce", 4, elements, 4 * elements - 2 * 3 * 64, 4, "psum")
    assert scattered == ("reduce-scatter", 1, 4 * 6, 4 * 24, 4, "")


def test_what_is_not_understood_is_said(scaling: ModuleType) -> None:
    with pytest.raises(ValueError, match="asynchronous all-gather"):
        scaling.parse_collectives("  %x = (f32[2], f32[8]) all-gather-start(%y), replica_groups={{0,1,2,3}}\n")
    with pytest.raises(ValueError, match="no groups"):
        scaling.parse_collectives("  %x = f32[2] all-reduce(%y), replica_groups=something\n")


def test_collectives_of_a_compiled_program(scaling: ModuleType) -> None:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    one, many = PartitionSpec(), PartitionSpec("data")

    def exchange(x: jax.Array) -> tuple[jax.Array, ...]:
        return (
            jax.lax.psum(x, "data"),
            jax.lax.all_gather(x, "data"),
            jax.lax.psum_scatter(2 * x, "data", tiled=True),
            jax.lax.ppermute(3 * x, "data", [(0, 1), (1, 0)]),
        )

    mapped = jax.shard_map(exchange, mesh=mesh, in_specs=many, out_specs=(one, one, many, many), check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((32, 3), jnp.float32)).compile().as_text()
    found = {collective.kind: collective for collective in scaling.parse_collectives(text)}
    # A device has 8 x 3 numbers; gathered there are four times as many.
    sizes = {kind: (collective.elements, collective.bytes) for kind, collective in found.items()}
    assert sizes == {
        "all-reduce": (24, 96),
        "all-gather": (96, 384),
        "reduce-scatter": (24, 96),
        "collective-permute": (24, 96),
    }
    assert {
        kind: collective.devices for kind, collective in found.items() if kind != "collective-permute"
    } == dict.fromkeys(("all-reduce", "all-gather", "reduce-scatter"), 4)


def test_only_the_gradients_and_a_few_numbers_may_be_exchanged(scaling: ModuleType) -> None:
    def reduction(elements: int, kind: str = "all-reduce", devices: int = 8) -> object:
        return scaling.Collective(kind, 1, elements, 4 * elements, devices, "somewhere")

    def verdict(*collectives: object) -> str:
        return scaling.wrong(collectives, parameters=1000, equal=100, devices=8)

    assert verdict(reduction(1000), reduction(7)) == ""
    assert verdict(reduction(600), reduction(400), reduction(7)) == ""
    # Equal gradients are summed once.
    assert verdict(reduction(900), reduction(7)) == ""
    assert "sums 64 numbers more" in verdict(reduction(1000), reduction(64))
    assert "sums 36 numbers less" in verdict(reduction(900), reduction(64))
    assert "sums 999 numbers less" in verdict(reduction(1))
    assert "sums 1,007 numbers more" in verdict(reduction(1000), reduction(1000), reduction(7))
    assert "all-gather among 8 devices (somewhere)" in verdict(reduction(1000), reduction(8, "all-gather"))
    assert "all-reduce among 4 devices" in verdict(reduction(1000), reduction(8, devices=4))


@pytest.mark.parametrize(
    ("name", "multiplications"),
    # Forward, with 1,000 classes, as torchvision and timm (resnext101_32x16d.fb_wsl_ig1b) print them.
    [("resnet18", 1.81e9), ("resnet50", 4.09e9), ("resnet101", 7.80e9), ("resnext101_32x16d", 36.3e9)],
)
def test_arithmetic_is_that_of_published_tables(scaling: ModuleType, name: str, multiplications: float) -> None:
    stem = 7 * 7 * 3 * 64 * 112**2
    expected = 2 * (3 * multiplications - stem)
    assert scaling.arithmetic(name, 224, heads={"classes": 1000}) == pytest.approx(expected, rel=5e-3)


def test_rings_and_trees_by_hand(scaling: ModuleType) -> None:
    # In a ring each of 4 devices sends 3 quarters of 8 GB twice, at 2 GB/s, in 6 messages.
    assert scaling.all_reduce(8e9, 4, 2e9, 1e-3) == pytest.approx(2 * 0.75 * 8 / 2 + 6e-3)
    # Up and down a tree of 256 are 16 messages instead of 510.
    assert scaling.all_reduce(8, 256, 2e9, 1e-3) == pytest.approx(16e-3)
    assert scaling.all_reduce(8e9, 1, 2e9, 1e-3) == 0


def test_reductions_over_nodes_by_hand(scaling: ModuleType) -> None:
    system = scaling.System(1e12, node=8, within=100e9, between=10e9, latency_within=1e-6, latency_between=5e-6)
    messages = 2 * 7 * 1e-6
    alone = 2 * 7 / 8 * 4e9 / 100e9 + messages
    assert scaling.reduction(4e9, 8, system, 1.0) == pytest.approx(alone)
    # Four nodes sum an eighth for each of their chips.
    among = 2 * 3 / 4 * (4e9 / 8) / 10e9 + 2 * 3 * 5e-6
    assert scaling.reduction(4e9, 32, system, 1.0) == pytest.approx(alone + among)
    assert scaling.reduction(4e9, 32, system, 0.5) == pytest.approx(2 * (alone + among) - messages - 2 * 3 * 5e-6)
    assert scaling.reduction(4e9, 2, system, 1.0) == pytest.approx(4e9 / 100e9 + 2 * 1e-6)


def test_overlap_hides_what_the_backward_pass_has_room_for(scaling: ModuleType) -> None:
    assert scaling.overlapped(3.0, 1.0, last=0.1) == pytest.approx(3.1)
    assert scaling.overlapped(3.0, 2.5, last=0.1) == pytest.approx(3.5)


def run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/scaling.py", "--quick", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_quick_run() -> None:
    done = run("--systems", "h200", "--links", "100,10")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["benchmark"], result["ratios"]) == ("scaling", {})
    assert [step["devices"] for step in result["steps"]] == [2, 8]
    for step in result["steps"]:
        largest = max(step["collectives"], key=lambda found: found["bytes"])
        assert largest["kind"] == "all-reduce"
        assert largest["devices"] == step["devices"]
        # Parameters and momenta, float32, and a little.
        assert 8 * step["parameters"] < step["argument_bytes"] < 8.2 * step["parameters"]
        # The compiler counts norms, too, which weigh much where the network is narrow.
        assert 1 < step["flops_per_image"] / step["flops_per_image_by_hand"] < 1.5
    assert [found["devices"] for found in result["planned"]] == [2, 8]


@pytest.mark.slow
def test_batch_norm_that_communicates_is_refused() -> None:
    done = run("--bn_group", "0", "--devices", "2")
    assert done.returncode == 1
    assert "resnet18 on 2 devices sums 1,807 numbers more than it has parameters" in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--encoders", "vgg"), "--encoders has no 'vgg'"),
        (("--devices", "1"), "--devices is '1'"),
        (("--systems", "abacus"), "--systems has no 'abacus'"),
        (("--links", "5"), "--links is '5'"),
    ],
)
def test_wrong_flags_are_said(options: tuple[str, ...], sentence: str) -> None:
    done = run(*options)
    assert done.returncode == 1
    assert sentence in done.stderr
