"""The command line as a process: errors as one line on stderr, and exit statuses."""

import sys
from collections.abc import Sequence

import click

from jobs.commands.cli import cli
from jobs.errors import ConfigError, OutputError
from jobs.printable import printable
from jobs.shortage import shortage
from jobs.stopping import StoppedError
from jobs.streams import mend_streams
from kernels.errors import QkvmillError

INTERRUPTED = 130
PIPE_CLOSED = 141
MAX_MESSAGE = 2000  # characters; what is named in it may be of any length


def main(arguments: Sequence[str] | None = None, began: float | None = None) -> int:
    """Run the command line; returns the exit status after printing any error as one line.

    0 done, 1 could not, 2 wrong usage, 130 stopped by SIGINT, 143 by SIGTERM. Where the reader of
    standard output has gone, as with `| head`, nothing is printed and the status is 141, which
    shells give to tools that such a pipe ended; run and expand, whose work is done by then, say so
    instead, with status 1.

    Args:
        arguments: None for those of the process.
        began: when the program did, by time.monotonic; None where another one calls.
    """
    mend_streams()
    try:
        status = _run_command(arguments, began)
        sys.stdout.flush()
        return status
    except OutputError as error:
        if error.closed:
            return PIPE_CLOSED
        _fail(str(error))
        return 1


def _run_command(arguments: Sequence[str] | None, began: float | None) -> int:
    """As main; raises OutputError where standard output takes no more."""
    try:
        # Without standalone mode click raises its errors instead of printing them over lines.
        status = cli.main(arguments, prog_name="qkvmill", standalone_mode=False, obj=began)
        return status if isinstance(status, int) else 0
    except click.Abort:
        _fail("interrupted")
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 2
    except click.ClickException as error:
        _fail(error.format_message())
        return error.exit_code
    except ConfigError as error:
        _fail(str(error))
        return 2
    except StoppedError as stopped:
        _fail(str(stopped))
        return stopped.status
    except OutputError:
        raise
    except QkvmillError as error:
        _fail(str(error))
        return 1
    except (MemoryError, OSError, RuntimeError) as error:
        if said := shortage(error):
            _fail(said)
        elif isinstance(error, OSError):
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}")
        else:
            raise
        return 1


def _fail(message: str) -> None:
    line = printable(" ".join(message.split()))
    if len(line) > MAX_MESSAGE:
        line = f"{line[: MAX_MESSAGE // 2]} ... {line[-MAX_MESSAGE // 2 :]}"
    click.echo(f"Error: {line}", err=True)
