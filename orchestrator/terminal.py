"""What the commands share: their arguments, their output, and how an error of ours ends one."""

import codecs
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from orchestrator.errors import CdsweepError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.results.store import SweepStore

Spec = Annotated[
    str, typer.Argument(metavar="SPEC", help="YAML or JSON file of the sweep.", show_default=False)
]
Sweep = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP", help="Name of a sweep in the storage, or path of its directory.", show_default=False
    ),
]
Trial = Annotated[
    str, typer.Argument(metavar="TRIAL", help="Id of a trial, or its beginning.", show_default=False)
]
Floors = Annotated[
    list[str] | None,
    typer.Option("--at-least", metavar="REWARD=VALUE", help="Repeatable; reward units.", show_default=False),
]
Prices = Annotated[
    list[str] | None,
    typer.Option(
        "--multiplier",
        metavar="NAME=NUMBER",
        help="Repeatable; of a constraint nats per reward unit, of a composition's model its weight: together 1.",
        show_default=False,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option("--kl-at-most", metavar="NATS", min=0.0, help="A budget.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Change a key of the spec; repeatable.", show_default=False
    ),
]
Storage = Annotated[str, typer.Option("--storage", metavar="URI", help="Where sweeps are kept.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh", help="Sample the pretrained model, and run every trial, also where the storage has them."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster: auto, local, HOST:PORT, or, from outside it, ray://HOST:PORT or http://HOST:PORT of the "
        "dashboard. "
        "Default: the running cluster if there is one, else a local Ray.",
        show_default=False,
    ),
]


def find_sweep(sweep: str, storage: str) -> "SweepStore":
    """Open a sweep by its name or the path of its directory."""
    from orchestrator.results.catalog import find_sweep as find

    return find(sweep, storage)


def numbers(written: list[str] | None, option: str, form: str, what: str) -> dict[str, float]:
    """Return the numbers of a repeatable option by name.

    Raises:
        UsageError: One is not written so, or a name stands twice.
    """
    found: dict[str, float] = {}
    for one in written or []:
        name, sign, value = one.partition("=")
        try:
            number = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"{option} takes {form}, got {one!r}")
        if name in found:
            raise UsageError(
                f"{option} names the {what} {name!r} twice, the second time as {one!r}: give one"
            )
        found[name] = number
    return found


FILE_WIDTH = 1_000_000_000
"""Columns of what is no terminal: nothing is folded there, a trial's list of prompts neither."""
PLOT_WIDTH = 80
"""Columns of a plot in a file."""
_PLAIN = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "≥": ">=",
    "≤": "<=",
    "±": "+-",
    "→": "->",
    "…": "...",
    "σ": "sigma",
    "λ": "lambda",
}
"""What is read as well without Unicode; anything else becomes its escape."""
_ERRORS = "cdsweep.plain"


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout; in an encoding that lacks a character of it, with JSON's escapes."""
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


def accept_all_text() -> None:
    """Let stdout and stderr write whatever their encodings lack in characters that they have.

    Bytes of a file name that are not in the file system's encoding are written as they are.
    """
    codecs.register_error(_ERRORS, _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def _in_plain_characters(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # surrogateescape's
        return bytes([ord(character) - 0xDC00]), error.start + 1
    escape = character.encode("ascii", "backslashreplace").decode()
    return _PLAIN.get(character, escape), error.start + 1


def stdout() -> "Console":
    """Return the console of results."""
    return _console(sys.stdout)


def stderr() -> "Console":
    """Return the console of progress and warnings."""
    return _console(sys.stderr)


def say(line: str) -> None:
    """Print a line of progress, whole."""
    stderr().print(line, soft_wrap=True)


def _console(stream: TextIO) -> "Console":
    """Return a console that shows text as it is: brackets of a path are no markup, colons of a name no emoji.

    Only a terminal has columns to fold at, and a table that is drawn in place.
    """
    from rich.console import Console

    terminal = stream.isatty()
    return Console(
        stderr=stream is sys.stderr,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if terminal else FILE_WIDTH,
        force_interactive=None if terminal else False,
    )


def quiet_libraries() -> None:
    """Have model libraries say errors alone, and draw bars on terminals alone; a user's own settings of both stay."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def reported() -> Iterator[None]:
    """Turn an error of ours into one message on stderr and its exit code."""
    try:
        yield
    except CdsweepError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one message on stderr."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
