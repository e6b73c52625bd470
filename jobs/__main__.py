"""`python -m jobs` and `qkvmill`: the same command."""

import importlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

BEGAN = time.monotonic()
INTERRUPTED = 130


def main() -> None:
    """Check that the packages imported are ours, then hand over to the command line."""
    # Until the command line takes it, an interrupt ends the program without a traceback, unless
    # whoever started it has interrupts ignored.
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("Error: the working folder is gone; change to one that is there")
    root = Path(__file__).resolve().parent.parent
    for name in ("kernels", "exporters"):
        package = importlib.import_module(name)
        place = Path(package.__file__ or "?").resolve()
        if place.parent.parent != root:
            sys.exit(
                f"Error: the package {name!r} at {place.parent} hides qkvmill's own; "
                "install qkvmill in an environment of its own (pipx install, or make setup)"
            )
    from jobs.commands.main import main as command_line

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = INTERRUPTED
    # What comes while the command ends, or the interpreter, is too late to interrupt anything.
    with suppress(KeyboardInterrupt):
        try:
            status = command_line(began=BEGAN)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


if __name__ == "__main__":
    main()
