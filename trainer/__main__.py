"""Entry point of `python -m trainer`."""

import sys


def run() -> int:
    """Run the command line; the import takes long enough to be interrupted."""
    try:
        from trainer.cli import main
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
