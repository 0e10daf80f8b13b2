"""A trial's process: a command of the trainer that stops with a checkpoint when its sweep is gone.

The sweep holds the other end of this process's standard input and never writes to it. However the sweep ends, also by
SIGKILL, the pipe then ends too. Without this a trial would go on alone, and be in the way of the sweep that resumes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> int:
    """Run the command of the arguments; returns its status."""
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    from trainer.cli import main as run_command

    return run_command()


def _stop_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
