"""What the commands share: their arguments, their output, and how an error of ours ends one."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator.errors import CdsweepError

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
    typer.Option("--fresh", help="Sample the pretrained model again, also where samples of it are kept."),
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


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def stdout() -> "Console":
    """Return the console of results."""
    from rich.console import Console

    return Console()


def stderr() -> "Console":
    """Return the console of progress and warnings."""
    from rich.console import Console

    return Console(stderr=True)


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
