import numpy as np
import pytest
from PIL import Image

from vise_jax.data import datasets
from vise_jax.errors import UserError
from vise_jax.reporting import neighbors


def test_the_page_shows_the_query_and_its_neighbors_in_order(trained, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b<b>.png", "c.png"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    images, query = (
        datasets.open_unlabeled(tmp_path / "photos"),
        datasets.open_unlabeled(tmp_path / "photos/a.png"),
    )
    found = [("c.png", 0.75), ("b<b>.png", 0.5)]
    output = tmp_path / "new" / "page.html"
    neighbors.write(trained, query, found, images, output, 10**6)
    text = output.read_text(encoding="utf-8")
    places = [text.index(words) for words in ("the query</strong>", "0.750</strong>", "0.500</strong>")]
    assert places == sorted(places)
    assert text.count("data:image/jpeg;base64,") == 3
    assert "b&lt;b&gt;.png" in text
    assert "b<b>" not in text
    neighbors.show(found)
    printed = capsys.readouterr().out
    assert "0.7500" in printed
    assert "b<b>.png" in printed
    with pytest.raises(UserError, match=r"The image x\.png is not in photos"):
        neighbors.write(trained, query, [("x.png", 0.5)], images, output, 10**6)
    with pytest.raises(UserError, match=r"ends in \.png: name a file that ends in \.html"):
        neighbors.write(trained, query, found, images, tmp_path / "photos" / "a.png", 10**6)
