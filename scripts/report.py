r"""Make a table of results: print it, and write it as table.md and table.csv.

Example:
    python scripts/report.py --results RESULTS --output REPORT
"""

from pathlib import Path

from absl import flags

from vise_jax import cli

_RESULTS = flags.DEFINE_string("results", None, "The folder that evaluate.py wrote results to.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")


def main(words: list[str]) -> None:
    """Read all results, write and print the table."""
    cli.no_words(words)
    folder, output = Path(cli.required(_RESULTS)), Path(cli.required(_OUTPUT))
    from vise_jax.evaluation import results
    from vise_jax.reporting import tables

    tables.show(tables.write(results.read_all(folder), output))
    print(f"written: {output / 'table.md'} and {output / 'table.csv'}")


if __name__ == "__main__":
    cli.run(main, __doc__)
