"""The command line: `timeripple compare`, `bench …` and the others, one file for every family of commands.

Everything heavy is imported inside the commands, so that help and wrong options answer at once.
"""

import errno
import io
import os
import sys
import warnings

import typer

from timeripple.cli import bench, clips, gpu, inspection, tuning
from timeripple.cli.common import USER_ERROR

__all__ = ["USER_ERROR", "app", "main"]
NO_OUTPUT = (errno.ENOSPC, errno.EPIPE, errno.EIO)  # of a full disk, and of who reads no more

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Reuse of attention in video diffusion, measured.")
for family in (clips, inspection, tuning, bench, gpu):
    family.add_to(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error of the user is one sentence on stderr and exit code 2."""
    from typer import _click

    warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)  # a sentence, without its place
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a locale cannot show costs no result
    try:
        code = app(arguments, prog_name="timeripple", standalone_mode=False)
        sys.stdout.flush()
    except _click.exceptions.UsageError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(USER_ERROR)
    except (KeyboardInterrupt, typer.Abort):
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in NO_OUTPUT or error.filename is not None:
            raise
        print(
            f"The output cannot be written: {str(error.strerror).lower()}; files that were made are kept.",
            file=sys.stderr,
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the rest of it fails again at exit
        sys.exit(USER_ERROR)
    sys.exit(code or 0)
