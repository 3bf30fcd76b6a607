"""Heat maps of sweeps."""

import io

import numpy as np
from PIL import Image

from vise_jax.reporting import sensitivity


def row(validation, test, **settings):
    return {"settings": settings, "validation": validation, "test": test, "details": {}}


def split(seed, sweep, selected):
    return {"seed": seed, "sweep": sweep, "selected": sweep[selected]}


def test_one_setting_has_a_row_for_each_split():
    splits = [split(s, [row(0.1 * s, 0.2, l2=1.0), row(0.3, 0.4 + s, l2=1e-3)], 1 - s) for s in (0, 1)]
    table = sensitivity.heat_map(splits)
    assert (table.rows, table.columns) == (["seed 0", "seed 1"], ["l2 0.001", "l2 1"])
    np.testing.assert_allclose(table.validation, [[0.3, 0.0], [0.3, 0.1]])
    np.testing.assert_allclose(table.test, [[0.4, 0.2], [1.4, 0.2]])
    assert table.selected.tolist() == [[True, False], [False, True]]


def test_two_settings_are_averaged_over_the_splits():
    def sweep(shift):
        return [row(r + d + shift, r, learning_rate=r, weight_decay=d) for r in (0.1, 0.2) for d in (0.0, 0.5)]

    table = sensitivity.heat_map([split(0, sweep(0.0), 3), split(1, sweep(0.2), 0)])
    assert table.rows == ["learning_rate 0.1", "learning_rate 0.2"]
    assert table.columns == ["weight_decay 0", "weight_decay 0.5"]
    np.testing.assert_allclose(table.validation, [[0.2, 0.7], [0.3, 0.8]])
    assert table.selected.tolist() == [[True, False], [False, True]]


def test_the_page_and_its_figures(tmp_path):
    result = {
        "task": "folder",
        "protocol": "linear",
        "setting": "image",
        "primary": "accuracy",
        "metrics": {"accuracy": {"mean": 0.4, "std": None, "values": [0.4]}},
        "selection": {"metric": "accuracy"},
        "splits": [split(0, [row(0.1, 0.2, l2=1.0), row(0.3, 0.4, l2=1e-3)], 1)],
        "encoder": {"name": "<b>ours</b>"},
        "data": {"name": "birds"},
        "file": "a.json",
    }
    page = sensitivity.write([result], tmp_path / "report")
    text = page.read_text()
    assert "&lt;b&gt;ours" in text
    assert "<b>ours" not in text
    assert "http" not in text.replace("http-equiv", "")
    picture = (tmp_path / "report" / "sensitivity-a.png").read_bytes()
    assert Image.open(io.BytesIO(picture)).width > 600
    # Equal values have a scale, too.
    result["splits"][0]["sweep"] = [row(0.3, 0.3, l2=1.0), row(0.3, 0.3, l2=0.1)]
    sensitivity.write([result], tmp_path / "report")
