"""Panels, figures and the page of runs: nothing is left out, nothing hostile becomes markup, the bytes are the same."""

import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from vise_jax.reporting import curves
from vise_jax.reporting.runs import Run, Series

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>$\\oops$"


def make_run(name: str = "run", count: int = 30, **changes: float) -> Run:
    steps = np.arange(1, count + 1) * 10
    noise = np.random.default_rng(count).normal(size=count)
    values = {
        "loss": 5 + noise,
        "loss_comments": 3 + noise,
        "loss_reactions": 2 + noise,
        "learning_rate": steps / steps[-1],
        "gradient_norm": np.exp(noise),
        "parameter_norm": steps * 1.0,
        "images_per_second": 100 + noise,
        "step_seconds": np.full(count, 0.5),
        "data_seconds": np.full(count, 0.1),
        "goodput": np.full(count, 0.98),
        "corrupt_examples": np.zeros(count),
        "device_bytes": np.full(count, 3 * 2.0**30),
        "knn_accuracy": np.full(count, 0.5),
        "something_new": noise,
    }
    series = {key: Series(steps, value.astype(np.float64)) for key, value in values.items()}
    for key in ("loss", "loss_comments", "loss_reactions", "top1_comments", "top5_comments"):
        series[f"validation_{key}"] = Series(steps[::10], np.full(len(steps[::10]), 0.25))
    return Run(name, {"training.batch_size": 8, "training.seed": changes.get("seed", 0)}, series)


class Page(html.parser.HTMLParser):
    """The tags of a page, its texts, and the content of its data script."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.texts: list[str] = []
        self.data = ""
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href") and value]
        self._in_data = attributes.get("id") == "data"
        assert not [key for key in attributes if key.startswith("on")]

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        if self._in_data:
            self.data += data
        else:
            self.texts.append(data.strip())


def page_of(runs: list[Run]) -> tuple[Page, str]:
    text = curves.render(runs, {"training_loss": b"a picture"})
    return Page(text), text


def test_each_metric_has_a_panel():
    run = make_run()
    panels = curves.panels([run])
    drawn = [name for panel in panels for name in panel.curves]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == run.series.keys() - {"step_seconds", "data_seconds"} | {"data_wait"}
    sections = {panel.title: panel.section for panel in panels}
    assert list(dict.fromkeys(sections.values())) == ["Loss", "Accuracy", "Optimization", "Speed", "Other"]
    assert sections["knn accuracy"] == "Accuracy"
    assert sections["something new"] == "Other"


def test_only_panels_with_curves():
    steps, values = np.array([1, 2]), np.array([2.0, 1.0])
    run = Run("run", {}, {"loss": Series(steps, values), "loss_reactions": Series(steps, values)})
    assert [panel.title for panel in curves.panels([run])] == ["loss", "loss: reactions"]
    assert curves.draw([run]).keys() == {"training_loss"}
    assert curves.panels([Run("new", {}, {})]) == []


def test_the_page_holds_the_numbers():
    one, other = make_run("one"), make_run("other", count=20)
    page, _ = page_of([one, other, Run("new", {}, {})])
    data = json.loads(page.data)
    assert data["runs"] == [{"name": "one", "batch": 8}, {"name": "other", "batch": 8}, {"name": "new", "batch": None}]
    panel = next(panel for panel in data["panels"] if panel["title"] == "gradient norm")
    assert [(curve["run"], curve["how"]) for curve in panel["curves"]] == [
        (0, "faint"),
        (1, "faint"),
        (0, "plain"),
        (1, "plain"),
    ]
    raw = panel["curves"][1]
    assert raw["steps"] == other.series["gradient_norm"].steps.tolist()
    assert raw["values"] == pytest.approx(other.series["gradient_norm"].values.tolist(), rel=1e-4)
    memory = next(panel for panel in data["panels"] if "GiB" in panel["title"])
    assert memory["curves"][0]["values"][0] == 3
    wait = next(panel for panel in data["panels"] if "waiting" in panel["title"])
    assert wait["curves"][0]["values"][0] == pytest.approx(0.2)
    assert "new has no records yet: it has only begun, or stopped before the first one." in page.texts


def test_long_runs_are_thinned():
    page, text = page_of([make_run(count=30_000)])
    curves_ = [curve for panel in json.loads(page.data)["panels"] for curve in panel["curves"]]
    assert max(len(curve["steps"]) for curve in curves_) == 2000
    assert len(text) < 3_000_000


def test_the_page_needs_nothing_else():
    page, text = page_of([make_run()])
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_hostile_names_stay_text():
    run = make_run(HOSTILE)
    run.series[HOSTILE] = run.series["loss"]
    run.config[HOSTILE] = HOSTILE
    clean, _ = page_of([make_run()])
    page, _ = page_of([run])
    # One more row of the config, one more panel: no other element.
    assert [tag for tag in page.tags if tag not in ("tr", "th", "td")] == [
        tag for tag in clean.tags if tag not in ("tr", "th", "td")
    ]
    assert HOSTILE in page.texts
    assert json.loads(page.data)["runs"][0]["name"] == HOSTILE


def test_config_against_the_default_or_the_other_run():
    run = make_run(seed=5)
    page, _ = page_of([run])
    assert "Config keys that are not the default" in page.texts
    place = page.texts.index("training.batch_size")
    assert [text for text in page.texts[place:] if text][:3] == ["training.batch_size", "1536", "8"]
    page, _ = page_of([make_run("one", seed=5), make_run("other", seed=6)])
    assert "Config keys that differ" in page.texts
    assert "training.batch_size" not in page.texts
    assert "training.seed" in page.texts


def test_the_same_bytes_each_time(tmp_path):
    runs = [make_run("one"), make_run("other", count=20)]
    for directory in ("a", "b"):
        curves.write(runs, tmp_path / directory)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    sections = ("accuracy", "loss", "optimization", "other", "speed")
    assert files == ["training.html", *(f"training_{section}.png" for section in sections)]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_figures_show_the_runs():
    for content in curves.draw([make_run("one"), make_run("other", count=20)]).values():
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(np.int64)
        found = {f"#{color:06x}" for color in np.unique(pixels @ [65536, 256, 1])}
        assert set(curves.COLORS[:2]) <= found
        assert curves.COLORS[2] not in found


def test_a_single_record_is_a_point():
    def colored(value: float) -> int:
        run = Run("run", {}, {"loss": Series(np.array([10]), np.array([value]))})
        pixels = np.asarray(Image.open(io.BytesIO(curves.draw([run])["training_loss"])).convert("RGB"))
        return int((pixels == [int(curves.COLORS[0][at : at + 2], 16) for at in (1, 3, 5)]).all(axis=2).sum())

    # A NaN is not drawn: only the legend has its color.
    assert colored(2.0) > colored(np.nan) > 0
