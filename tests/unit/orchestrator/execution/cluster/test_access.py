"""Tokens: found in Ray's order, made and kept private, switched on where one is."""

import os
import stat
from pathlib import Path

import pytest

from orchestrator.execution.cluster import access


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and nothing of Ray's in the environment; what a test sets there goes with it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (access.MODE, access.TOKEN, access.TOKEN_PATH):
        monkeypatch.setenv(name, "")  # so that what is set is forgotten afterwards
        monkeypatch.delenv(name)
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_looked_for_where_ray_looks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert access.token_source() is None
    default = home / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("a")
    assert access.token_source() == str(default)
    monkeypatch.setenv(access.TOKEN_PATH, "/elsewhere")
    assert access.token_source() == "/elsewhere"
    assert access.token_file() == Path("/elsewhere")
    monkeypatch.setenv(access.TOKEN, "b")
    assert access.token_source() == access.TOKEN
    assert access.token_file() is None


def test_a_local_ray_gets_a_token_that_only_its_owner_reads(home: Path) -> None:
    access.prepare(local=True)
    file = home / ".ray" / "auth_token"
    assert mode(file) == 0o600
    assert len(file.read_text()) == 64
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]
    assert os.environ[access.MODE] == "token"
    before = file.read_text()
    access.prepare(local=True)
    assert file.read_text() == before


def test_an_address_gets_no_token_made(home: Path) -> None:
    access.prepare(local=False)
    assert not (home / ".ray").exists()
    assert access.MODE not in os.environ, "Ray's own default stands"


def test_a_token_that_ray_made_is_tightened_and_used(home: Path) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("a")
    file.chmod(0o644)
    access.prepare(local=False)
    assert mode(file) == 0o600
    assert os.environ[access.MODE] == "token"


@pytest.mark.parametrize("local", [True, False])
def test_what_the_user_says_stands(home: Path, monkeypatch: pytest.MonkeyPatch, local: bool) -> None:
    monkeypatch.setenv(access.MODE, "disabled")
    access.prepare(local=local)
    assert os.environ[access.MODE] == "disabled"
    assert not (home / ".ray").exists()


def test_a_refusal_says_what_was_shown_and_where_the_right_one_goes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "asks for a token, and there is none" in str(access.refused("h:1"))
    monkeypatch.setenv(access.TOKEN, "geheim")
    monkeypatch.setenv(access.MODE, "token")
    said = str(access.refused("h:1"))
    assert said.startswith("Ray at h:1 refuses the token from RAY_AUTH_TOKEN")
    assert "geheim" not in said
    assert "\n" not in said
    monkeypatch.setenv(access.MODE, "disabled")
    assert "unset RAY_AUTH_MODE" in str(access.refused("h:1"))
