"""Help comes at once: no script imports what takes seconds before its flags are known."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.py"))
_SHOW = """
import runpy, sys
path = sys.argv[1]
sys.argv = [path, "--help"]
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit:
    pass
print("LOADED", *{"jax", "tensorflow", "sklearn", "flax", "optax", "torch", "matplotlib"} & sys.modules.keys())
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_loads_no_heavy_library(script):
    shown = subprocess.run([sys.executable, "-c", _SHOW, str(script)], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "LOADED"
