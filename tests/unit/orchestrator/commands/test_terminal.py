"""Text on the terminal, in files and in logs: what was written is what is read."""

import io
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from support.reported import write_sweep
from typer.testing import CliRunner

from orchestrator import terminal
from orchestrator.cli import app
from orchestrator.report.terminal.tables import plain_table
from orchestrator.terminal import FILE_WIDTH, accept_all_text, print_json, quiet_libraries, stdout

NAMES = ("[team] 100% #1 [/] [bold]", ":dog: [cat:dog:0.5]", "a" * 300, "/mnt/[b]/1 2.5 'x' https://x.y")
"""Markup, an emoji, and things that are highlighted or folded."""


def written(monkeypatch: pytest.MonkeyPatch, stream: str, encoding: str) -> Callable[[], bytes]:
    """Return a reader of what goes to a stream from now on; it is a file."""
    raw = io.BytesIO()
    sink = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, stream, sink)

    def read() -> bytes:
        sink.flush()
        return raw.getvalue()

    return read


def table(*cells: str) -> Table:
    made = plain_table(*(f"column {place} [x] :cat:" for place in range(len(cells))))
    made.add_row(*cells)
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_names_and_paths_are_printed_as_they_are(
    name: str, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = written(monkeypatch, stream, "ascii")
    console = getattr(terminal, stream)()
    console.print(name, soft_wrap=True)
    console.print(table(name, "[red]:dog:"))
    line, heads, cells = read().decode().splitlines()
    assert line == name
    assert heads.split("  ")[0].startswith("column 0 [x] :cat:")
    assert cells.split("  ")[0] == name
    assert cells.rstrip().endswith("[red]:dog:")


def test_nothing_is_folded_where_there_are_no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    read = written(monkeypatch, "stdout", "utf-8")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI sets it; a log is no terminal all the same
    console = stdout()
    assert console.width == FILE_WIDTH
    assert not console.is_interactive
    console.print(table("w" * 200, "v" * 20_000))
    assert b"w" * 200 in read()
    assert b"v" * 20_000 in read()


@pytest.mark.parametrize(
    "command",
    [
        ["plan", "SPEC"],
        ["doctor"],
        ["list"],
        ["status", "demo"],
        ["frontier", "demo"],
        ["frontier", "demo", "again"],
        ["pick", "demo", "--kl-at-most", "1"],
        ["describe", "demo", "TRIAL"],
    ],
    ids=" ".join,
)
def test_rows_in_a_pipe_end_with_their_text(command: list[str], tmp_path: Path) -> None:
    """Of a table with one wide cell too: as many spaces in every row say nothing."""
    stores = [write_sweep(tmp_path, name=name) for name in ("demo", "again")]
    (tmp_path / "spec.yaml").write_text(stores[0].spec_yaml())
    known = {"SPEC": str(tmp_path / "spec.yaml"), "TRIAL": stores[0].trials()["trial_id"][0].as_py()}
    arguments = [known.get(part, part) for part in command]
    storage = [] if command[0] == "plan" else ["--storage", str(tmp_path)]
    found = CliRunner().invoke(app, [*arguments, *storage])
    assert found.exit_code in {0, 1}, found.output  # doctor's, of this machine
    assert len(found.stdout.splitlines()) > 1
    assert [line for line in found.stdout.splitlines() if line != line.rstrip()] == []


def test_a_narrow_terminal_folds() -> None:
    """Printed on a pseudo-terminal of 40 columns by a process of its own."""
    main, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 40))
    code = (
        "from orchestrator.terminal import stdout\nfrom orchestrator.report.terminal.tables import plain_table\n"
        "made = plain_table('a', 'b')\nmade.add_row('w' * 60, 'v' * 60)\nstdout().print(made)\n"
    )
    hidden = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR")
    env = {key: value for key, value in os.environ.items() if key not in hidden} | {"TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=follower, env=env, check=True, timeout=60)
    os.close(follower)
    said = os.read(main, 65536).decode()
    os.close(main)
    plain = [line.rstrip() for line in said.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()]
    assert max(len(line) for line in plain) <= 40
    assert "".join(plain).count("w") == "".join(plain).count("v") == 60


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_text_can_be_written_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = written(monkeypatch, "stdout", encoding)
    accept_all_text()
    stdout().print("kl −0.5 ≥ 0.2 é 猫 \udcff", soft_wrap=True)
    found = read()
    assert found.endswith(b" \xff\n"), "a byte of a file's name is that byte"
    told = {
        "ascii": "kl -0.5 >= 0.2 \\xe9 \\u732b",
        "latin-1": "kl -0.5 >= 0.2 é \\u732b",
        "cp1252": "kl -0.5 >= 0.2 é \\u732b",
        "utf-8": "kl −0.5 ≥ 0.2 é 猫",
    }[encoding]
    assert found[:-3].decode(encoding) == told


def test_json_can_be_read_from_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    read = written(monkeypatch, "stdout", "ascii")
    accept_all_text()
    print_json({"name": "é 猫 \U0001f600 σ"})
    assert json.loads(read()) == {"name": "é 猫 \U0001f600 σ"}


COMMANDS = (
    ["status"],
    ["frontier", "--plot"],
    ["frontier", "--json"],
    ["report"],
    ["pick", "--kl-at-most", "1"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_in_ascii(command: list[str], tmp_path: Path) -> None:
    """A sweep whose directory and rewards have the characters of other alphabets, and of markup."""
    folder = tmp_path / "My Drive [team] :dog: é"
    write_sweep(folder)
    first, *rest = command
    found = CliRunner(charset="ascii").invoke(app, [first, str(folder / "demo"), *rest])
    assert found.exit_code == 0, found.exception
    if first == "report":
        assert str(folder / "demo").replace("é", "\\xe9") in found.output


def test_libraries_say_errors_alone_unless_the_user_asks_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSERS_VERBOSITY", "info")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    quiet_libraries()
    assert os.environ["DIFFUSERS_VERBOSITY"] == "info"
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1", "what pytest captures is no terminal"
