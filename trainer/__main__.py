"""Entry point of `python -m trainer`."""

import os
import sys


def run() -> int:
    """Run the command line; the import takes long enough to be interrupted."""
    # Torch reads this when it is imported. Threads of an operation then sleep while they wait for one another, as in
    # the service's engine; GOMP_SPINCOUNT takes precedence. Where other work has the cores, threads that spin make a
    # step take minutes.
    os.putenv("OMP_WAIT_POLICY", "passive")
    try:
        from trainer.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
