"""What is counted of an optimized program, against numbers worked by hand."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "shared"))
from hlo import Operations, operations_of

PROGRAM = """HloModule step

%fused (p0: f32[8,4], p1: f32[2,4]) -> f32[2,4] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %view = f32[8,4]{1,0} bitcast(%p0)
  %slice.1 = f32[2,4]{1,0} slice(%view), slice={[0:2], [0:4]}
  %p1 = f32[2,4]{1,0} parameter(1)
  ROOT %add.1 = f32[2,4]{1,0} add(%slice.1, %p1)
}

ENTRY %main (x: f32[8,4], y: f32[2,4]) -> f32[2,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = f32[2,4]{1,0} parameter(1)
  BODY
}
"""
FUSION = "%f = f32[2,4]{1,0} fusion(%x, %y), kind=kLoop, calls=%fused"
# Two rows of four are 32 bytes, and half as many in bfloat16.
NOTHING = Operations(0, 0, 0, {}, (0, 0), 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # Of x, two rows are read.
        (FUSION, NOTHING._replace(bytes=96, main_memory=96, fusions=1)),
        ("ROOT %b = f32[8]{0} bitcast(%y)", NOTHING),
        ("%c = bf16[2,4]{1,0} convert(%y)", NOTHING._replace(bytes=48, main_memory=48, conversions=48)),
        (
            "%wrapped_transpose.3 = f32[4,2]{1,0} fusion(%y), kind=kLoop, calls=%other",
            NOTHING._replace(bytes=64, main_memory=64, fusions=1, conversions=64),
        ),
        (
            '%k = (f32[2,4]{1,0}, s8[16]{0}) custom-call(%y), custom_call_target="__cudnn$convForward"',
            NOTHING._replace(bytes=80, main_memory=80, libraries={"__cudnn$convForward": 1}),
        ),
        (
            "%r = f32[2,4]{1,0} all-reduce(%y), replica_groups={{0,1}}, to_apply=%sum",
            NOTHING._replace(bytes=64, main_memory=64, collectives=(1, 32)),
        ),
        # What stays on the chip is read from main memory once.
        ("%z = f32[2,4]{1,0:T(8,128)S(1)} add(%y, %y)", NOTHING._replace(bytes=96, main_memory=64)),
        (
            "%s = (f32[2,4]{1,0:S(1)}, f32[2,4]{1,0}, u32[]{:S(2)}) copy-start(%y)",
            NOTHING._replace(bytes=64, main_memory=32, conversions=64),
        ),
        ("%d = f32[2,4]{1,0} copy-done(%y)", NOTHING),
    ],
)
def test_an_operation(line: str, expected: Operations) -> None:
    assert operations_of(PROGRAM.replace("BODY", line)) == expected


def test_a_program_of_jax() -> None:
    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return x @ y

    text = jax.jit(product).lower(jnp.zeros((8, 4)), jnp.zeros((4, 16))).compile().as_text()
    assert re.search(r"ENTRY .*product|ENTRY %main", text)
    assert operations_of(text).bytes == 4 * (8 * 4 + 4 * 16 + 8 * 16)
