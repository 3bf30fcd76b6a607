"""scripts/import_posts.py as people run it: from a table to a labeler, and on mistakes."""

import csv
import subprocess
import sys
from pathlib import Path

from vise_jax import config
from vise_jax.labeling import fit

ROOT = Path(__file__).parents[2]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "import_posts.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def test_a_table_becomes_clusters(tmp_path):
    with open(tmp_path / "stars.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "review", "five", "one"])
        writer.writerows([number, f"so {'lovely' if number % 2 else 'awful'}", 9, number % 2] for number in range(120))
        writer.writerow([999, "a review", "many", 1])
    mapping = "--map=post_id=id,comments=review,reactions.5=five,reactions.1=one"
    words = ("--from=table", "--input", tmp_path / "*.csv", "--output", tmp_path / "posts", mapping)
    result = run(*words)
    assert result.returncode == 0, result.stderr
    assert "count_no_number 1" in result.stdout
    assert "1,080" in result.stdout
    again = run(*words)
    assert (again.returncode, again.stdout) == (0, result.stdout)
    labels = config.base().labels
    labels.update(comment_clusters=2, reaction_clusters=2, cluster_fraction=0.9, comment_dim=2, reactions=("1", "5"))
    labeler = fit.fit([tmp_path / "posts" / "00000.jsonl"], labels, tmp_path / "labeler")
    assert labeler.classes == {"comments": 2, "reactions": 2}
    assert not labeler.fitted["rejected"]


def test_mistakes_get_one_sentence(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n1,a\n")
    given = ("--input", tmp_path / "t.csv", "--output", tmp_path / "posts")
    for words, message in (
        (
            ("--from=table", "--map=post_id=number", *given),
            "t.csv has no column 'number': name one that it has (id, text)",
        ),
        (("--from=table", "--map=post_id", *given), "--map has 'post_id': write FIELD=PLACE"),
        (("--from=table", *given), "--map belongs to --from table"),
        (("--from=crowdtangle", *given), "t.csv has no column 'URL': name one that it has (id, text)"),
        (("--from=reddit", "--input", tmp_path / "none.zst", "--output", tmp_path / "posts"), "none.zst"),
    ):
        result = run(*words)
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
