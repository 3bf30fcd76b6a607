"""The benchmarks of reliability: a job that leaks is seen, and the quick forms run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LEAK = """
import time
kept, files = [], []
for _ in range(16):
    kept.append(bytearray(b"x") * 5_000_000)
    files.append(open("/dev/null"))
    time.sleep(1)
"""


@pytest.mark.slow
def test_a_leak_has_a_slope(load_benchmark) -> None:
    watched = load_benchmark("load")._watch([sys.executable, "-c", _LEAK])
    assert watched["status"] == 0
    # 5 MB and one file a second.
    assert watched["mb_per_minute"] == pytest.approx(300 / 1.048576, rel=0.25)
    assert watched["files_per_minute"] == pytest.approx(60, rel=0.25)
    assert watched["peak_files"] >= 16


def test_pictures_are_distinct(load_benchmark) -> None:
    picture = load_benchmark("load").picture
    assert len({picture(number) for number in range(200)}) == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bounds", "fuzz"])
def test_the_quick_form_runs(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["benchmark"] == name
