"""The `patchclamp` program: all commands, and how failures become one line and an exit code.

Exit codes: 0 done, 1 the job failed, 2 wrong usage or unusable input. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from patchclamp.cli import (
    atlas,
    check,
    demo,
    edit,
    effect,
    find,
    fit,
    generate,
    listing,
    models,
    perplexity,
    read,
    record,
    replay,
    score,
    select,
    study,
    train,
)

FULL_OR_FORBIDDEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


class Program(TyperGroup):
    """The group of all commands: an expected failure of any of them is one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        from patchclamp.core.errors import Error

        try:
            return super().invoke(ctx)
        except Error as problem:  # also the interruption of a recording, which says how to go on
            _stop(str(problem), problem.exit_code)
        except KeyboardInterrupt:
            _stop("interrupted; nothing was left half-written", 1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader (`head`) has gone
            sys.exit(1)
        except OSError as problem:
            if problem.errno not in FULL_OR_FORBIDDEN:
                raise
            _stop(f"{problem.strerror}: {problem.filename or 'while writing'}", 1)


app = typer.Typer(
    name="patchclamp",
    cls=Program,
    help="Record every unit of a language model, find those that carry something, clamp them, measure the effect.",
    epilog="Start with: patchclamp demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from patchclamp import __version__

        typer.echo(f"patchclamp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Record every unit of a language model, find those that carry something, clamp them, measure the effect."""


for module in (
    demo,
    record,
    find,
    read,
    fit,
    generate,
    effect,
    perplexity,
    score,
    edit,
    atlas,
    study,
    check,
    models,
    train,
    select,
    replay,
    listing,
):
    module.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the program; never returns normally (sys.exit). A bug keeps its traceback, an expected failure is one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = _warn
        app(args=arguments)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line: where in the source it was raised says nothing to who typed a command."""
    _say(f"warning: {message}")


def _stop(message: str, code: int) -> NoReturn:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    print(f"patchclamp: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
