"""Count what an optimized program does, of its text in XLA's HLO.

Bytes are those of operands and results of all operations but views; of an operand that is only sliced, those of the
slices.
"""

import itertools
import math
import re
from collections import Counter
from typing import NamedTuple

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_VIEWS = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "replica-id", "after-all"}
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
# With its layout, which names memory space 1 for what a TPU keeps on the chip.
_PLACED = re.compile(r"\b[a-z]\w*\[[\d,]*\](\{[^}]*\})?")
_ON_CHIP = "S(1)"


class Operations(NamedTuple):
    """What the operations of a compiled step do, per device.

    Attributes:
        bytes: of operands and results.
        main_memory: bytes of them that are read from main memory, or written to it.
        fusions: number of fusions.
        libraries: number of calls by library function.
        collectives: number and bytes of collectives.
        conversions: bytes of operations that only copy, transpose or convert.
    """

    bytes: int
    main_memory: int
    fusions: int
    libraries: dict[str, int]
    collectives: tuple[int, int]
    conversions: int


def operations_of(text: str) -> Operations:
    """Count what the operations of an optimized program do, of its text in HLO."""
    sliced = _sliced_parameters(text)
    entry = text.split("\nENTRY ")[1].split("\n}")[0]
    results: dict[str, str] = {}
    total, main_memory, conversions, fusions, libraries = 0, 0, 0, 0, Counter[str]()
    collectives, collective_bytes = 0, 0
    for line in entry.splitlines()[1:]:
        if not (match := _INSTRUCTION.match(line)):
            continue
        name, rest = match.groups()
        shape, operation, operands = _split(rest)
        results[name] = shape
        if operation in _VIEWS or operation.endswith("-done"):
            continue
        called = re.search(r"calls=%?([\w.\-]+)", line)
        parts = sliced.get(called[1], {}) if called else {}
        read = sum(parts.get(index, _size(results.get(operand, ""))) for index, operand in enumerate(operands))
        # The result of a start holds its operands, too.
        size = 2 * read if operation.endswith("-start") else read + _size(shape)
        total += size
        main_memory += _in_main_memory(operation, shape, [results.get(operand, "") for operand in operands], size)
        fusions += operation == "fusion"
        if operation == "custom-call" and (target := re.search(r'custom_call_target="([^"]+)"', line)):
            libraries[target[1]] += 1
        if operation.removesuffix("-start") in _COLLECTIVES:
            collectives += 1
            collective_bytes += read
        if operation in ("copy", "copy-start", "transpose", "convert") or re.match(
            r"(loop_|input_|wrapped_)?(convert|copy|transpose)[\w.]*$", name
        ):
            conversions += size
    return Operations(total, main_memory, fusions, dict(libraries), (collectives, collective_bytes), conversions)


def _in_main_memory(operation: str, shape: str, operands: list[str], size: int) -> int:
    """Return how many of an operation's bytes are read from main memory or written to it."""
    if _ON_CHIP not in "".join([shape, *operands]):
        return size
    arrays = list(_PLACED.finditer(shape))
    if operation in ("copy-start", "slice-start"):  # onto the chip or off it, of the size of the second
        return _size(arrays[1][0])
    placed = itertools.chain(arrays, *map(_PLACED.finditer, operands))
    return sum(_size(array[0]) for array in placed if _ON_CHIP not in (array[1] or ""))


def _sliced_parameters(text: str) -> dict[str, dict[int, int]]:
    """Return, by computation, the bytes that it reads of each parameter of which it only uses slices."""
    found: dict[str, dict[int, int]] = {}
    for block in text.split("\n\n"):
        header, *lines = block.strip().splitlines() or [""]
        # Names of a parameter, also as another view or type of all of it, to its number and the bytes of an element.
        parameters: dict[str, tuple[int, int]] = {}
        read: dict[int, int | None] = {}
        for line in lines:
            if not (match := _INSTRUCTION.match(line)):
                continue
            name, rest = match.groups()
            shape, operation, operands = _split(rest)
            if operation == "parameter":
                number = int(rest.partition("parameter(")[2].partition(")")[0])
                parameters[name] = number, _size(shape) // max(_elements(shape), 1)
            for number, width in {parameters[operand] for operand in operands if operand in parameters}:
                if operation in ("bitcast", "convert"):
                    parameters[name] = number, width
                elif operation != "slice":
                    read[number] = None
                elif (before := read.get(number, 0)) is not None:
                    read[number] = before + width * _elements(shape)
        if parts := {number: size for number, size in read.items() if size is not None}:
            found[header.removeprefix("ENTRY ").lstrip("%").split(" ")[0]] = parts
    return found


def _split(rest: str) -> tuple[str, str, list[str]]:
    """Split an instruction into the type of its result, its operation and the names of its operands."""
    shape, rest = _cut(rest, 0) if rest.startswith("(") else rest.split(" ", 1)
    operation, _, rest = rest.strip().partition("(")
    return shape, operation, re.findall(r"%([\w.\-]+)", _cut(rest, 1)[0])


def _cut(text: str, depth: int) -> tuple[str, str]:
    """Cut a text behind the parenthesis that closes the outermost of `depth` open ones."""
    for end, character in enumerate(text, start=1):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[:end], text[end:]
    return text, ""


def _size(shape: str) -> int:
    """Return the bytes of a type, of a tuple those of all elements."""
    return sum(_BYTES.get(dtype, 4) * _elements(f"{dtype}[{sides}]") for dtype, sides in _SHAPE.findall(shape))


def _elements(shape: str) -> int:
    """Return the number of elements of an array's type."""
    match = _SHAPE.search(shape)
    return math.prod(int(side) for side in match[2].split(",") if side) if match else 0
