"""Whose a cluster on this machine is, by processes that are made up."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from orchestrator.errors import ClusterError
from orchestrator.execution.cluster import here


def process(folder: Path, *, uid: int, ppid: int = 1, port: int = 6379) -> Any:
    flags = [f"--node-ip-address=10.0.0.1 --gcs_server_port={port} --session-dir={folder}/session_1"]
    return SimpleNamespace(
        info={
            "name": "gcs_server",
            "ppid": ppid,
            "uids": SimpleNamespace(real=uid),
            "username": "me" if uid == os.getuid() else "somebody",
            "cmdline": ["/ray/gcs_server", *flags[0].split()],
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379")
    return tmp_path


def test_what_ray_start_of_ours_runs_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(
        info={"name": "python", "ppid": 1, "uids": None, "username": "me", "cmdline": None}
    )
    running = [other, process(folder, uid=os.getuid())]
    monkeypatch.setattr(psutil, "process_iter", lambda _: running)
    assert here.persistent_cluster() == "10.0.0.1:6379"
    here.refuse_foreign("10.0.0.1:6379")
    here.refuse_foreign("10.0.0.2:6379")


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ({"uid": os.getuid() + 1}, "is that of somebody"),
        ({"uid": os.getuid(), "port": 6380}, "has been left by a program that is gone"),
    ],
)
def test_what_is_not_ours_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, of: dict[str, int], message: str
) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda _: [process(folder, **of)])
    assert here.persistent_cluster() is None
    with pytest.raises(ClusterError, match=message):
        here.refuse_foreign(f"10.0.0.1:{of.get('port', 6379)}")


def test_the_local_ray_of_a_program_that_runs_is_taken_where_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "process_iter", lambda _: [process(folder, uid=os.getuid(), ppid=77)])
    assert here.persistent_cluster() is None
    here.refuse_foreign("10.0.0.1:6379")
