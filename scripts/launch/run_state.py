"""Print how far a run has come: "finished", or the step of its newest complete checkpoint, if there is one.

The launch files ask it where a run directory is in a bucket, which a shell can't look into:

    python scripts/launch/run_state.py gs://BUCKET/run
"""

import sys

from vise_jax import artifact
from vise_jax.training import run_dir


def main() -> None:
    """Print the state of the run directory that the first argument names."""
    workdir = artifact.location(sys.argv[1])
    if artifact.is_file(workdir / "encoder" / "encoder.json"):
        print("finished")
    else:
        print(*run_dir.checkpoints(workdir)[-1:])


if __name__ == "__main__":
    main()
