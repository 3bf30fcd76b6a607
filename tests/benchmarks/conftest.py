"""Benchmarks as modules, so that their parts can be tested."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def load_benchmark() -> Callable[[str], ModuleType]:
    """Loads benchmarks/NAME.py. Its flags are forgotten, since another benchmark may have flags of the same name."""

    def load(name: str) -> ModuleType:
        before = set(flags.FLAGS)
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look for their module there.
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        return module

    return load
