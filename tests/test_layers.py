"""Imports run one way, heavy libraries stay in their rooms, and nothing is loaded by pickle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room imports from itself and from lower floors. Rooms on one floor don't know each other.
FLOORS = [
    {"errors"},
    {"arrays", "artifact", "progress", "config", "cli", "similarity", "preprocessing", "logging", "machine", "hosts"},
    {"posts", "text"},
    {"data", "models", "importing"},
    {"variables", "model_card"},
    {"encoder", "demo"},
    {"text_encoder"},
    {"engagement", "interop", "training"},
    {"labeling", "inference"},
    {"evaluation"},
    {"reproduction"},
    {"reporting"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted((ROOT / "vise_jax").rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "vise_jax").with_suffix("").parts[0]


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) != "__init__"], ids=str)
def test_no_arrow_runs_back(path):
    room = room_of(path)
    for name in imported(path):
        if name.startswith("vise_jax.") and (other := name.split(".")[1]) in FLOOR:
            allowed = other == room or FLOOR[other] < FLOOR[room]
            if FLOOR[room] <= 1:  # the ground's small modules may use each other; Python itself refuses a loop
                allowed = FLOOR[other] <= 1
            assert allowed, f"{room} imports {name}"


@pytest.mark.parametrize(
    ("library", "rooms"), [("tensorflow", {"data"}), ("tensorflow_datasets", {"data"}), ("torch", {"interop"})]
)
def test_heavy_libraries_stay_in_their_rooms(library, rooms):
    users = {room_of(path) for path in MODULES for name in imported(path) if name.split(".")[0] == library}
    assert users <= rooms


def test_scripts_and_benchmarks_of_speed_do_not_pull_in_tensorflow():
    for path in (ROOT / "benchmarks" / "step.py",):
        assert not any(name.startswith(("tensorflow", "vise_jax.data")) for name in imported(path))


def test_nothing_is_loaded_by_pickle():
    sources = [path for directory in ("vise_jax", "scripts", "configs") for path in (ROOT / directory).rglob("*.py")]
    for path in sources:
        names = {name.split(".")[0] for name in imported(path)}
        assert not names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}, path
        text = path.read_text(encoding="utf-8")
        assert "allow_pickle=True" not in text, path
        assert "weights_only=False" not in text, path
