"""The hub's protocol, spoken by a server on the loopback interface: weights come by id, once, and the same."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from torch import Tensor

from trainers.rewards.blip import BlipItm, ImageReward
from trainers.rewards.clip import Aesthetic, ClipScore, HPSv21
from trainers.rewards.mps import MPS

COMMIT = "c0ffee0000000000000000000000000000000000"


class Hub(ThreadingHTTPServer):
    """Directories served as repositories, by id; remembers what was asked."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:  # noqa: D107 - as the class says
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """As much of the protocol as a download needs: ``resolve`` with HEAD and GET, and ``api/models``."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.removeprefix("/api/models").strip("/").split("/")
        folder = self.server.repositories.get("/".join(parts[:2]))
        if folder is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/"):
            self._send(200, json.dumps(about(folder, tree="/tree/" in path)).encode(), {})
        elif not (
            file := folder.joinpath(*parts[4:])
        ).is_file():  # owner / name / resolve / revision / file …
            self._send(404, b"", {"X-Repo-Commit": COMMIT, "X-Error-Code": "EntryNotFound"})
        else:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": tag, "Accept-Ranges": "bytes"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers.items(), ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def about(folder: Path, *, tree: bool) -> object:
    """Return what the hub tells of a repository: its files, or more briefly their names."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if tree:
        return [
            {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": "0"}
            for f in files
        ]
    names = [{"rfilename": str(file.relative_to(folder))} for file in files]
    return {"id": folder.name, "sha": COMMIT, "siblings": names}


@contextmanager
def serving(repositories: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve until the block ends; yields the endpoint and the list of requests, which grows."""
    server = Hub(repositories)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


SCORE = """
import json, sys, torch
from trainers.rewards.clip import Aesthetic, ClipScore, HPSv21, PickScore
from trainers.rewards.blip import BlipItm, ImageReward
from trainers.rewards.mps import MPS

torch.set_num_threads(1)
samples, prompts = torch.load(sys.argv[1], weights_only=True), json.loads(sys.argv[2])
result = {}
for name, options in json.loads(sys.argv[3]).items():
    try:
        with torch.no_grad():
            result[name] = globals()[name](**options)(samples, prompts).tolist()
    except ValueError as error:
        result[name] = str(error)
print("RESULT", json.dumps(result))
"""


def run(
    tmp_path: Path,
    endpoint: str,
    options: dict[str, Any],
    samples: Tensor,
    prompts: list[str],
    timeout: float = 240,
) -> Any:
    """Score in a process of its own: the hub's client reads HF_ENDPOINT when it is imported."""
    torch.save(samples, tmp_path / "samples.pt")
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS"))
    }
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    arguments = [str(tmp_path / "samples.pt"), json.dumps(prompts), json.dumps(options)]
    done = subprocess.run(
        [sys.executable, "-c", SCORE, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rsplit("RESULT", 1)[1])


@pytest.mark.slow
def test_the_hub_and_a_directory_give_the_same_scores(
    tmp_path: Path,
    clip_folder: Path,
    open_clip_folder: Path,
    aesthetic_folder: Path,
    blip_folder: Path,
    image_reward_folder: Path,
    mps_folder: Path,
    pictures: Tensor,
    prompts: list[str],
) -> None:
    repositories = {
        "tiny/clip": clip_folder,
        "tiny/open_clip": open_clip_folder,
        "tiny/aesthetic": aesthetic_folder,
        "tiny/blip": blip_folder,
        "tiny/image_reward": image_reward_folder,
        "tiny/mps": mps_folder,
    }
    hub = {
        "ClipScore": {"model": "tiny/clip"},
        "HPSv21": {"model": "tiny/open_clip", "processor": "tiny/clip"},
        "Aesthetic": {"model": "tiny/aesthetic", "clip": "tiny/clip"},
        "BlipItm": {"model": "tiny/blip"},
        "ImageReward": {"model": "tiny/image_reward", "processor": "tiny/image_reward"},
        "MPS": {"model": "tiny/mps", "processor": "tiny/clip"},
    }
    with serving(repositories) as (endpoint, requests):
        found = run(tmp_path, endpoint, hub | {"PickScore": {"model": "tiny/nothing"}}, pictures, prompts)
    absent = found.pop("PickScore")
    assert any(request.startswith("GET /tiny/clip/resolve/") for request in requests)
    assert (tmp_path / "hub" / "hub" / "models--tiny--clip" / "snapshots" / COMMIT).is_dir()
    # The server is gone: what was fetched is found without it.
    assert run(tmp_path, endpoint, hub, pictures, prompts) == found

    classes = {c.__name__: c for c in (ClipScore, HPSv21, Aesthetic, BlipItm, ImageReward, MPS)}
    for name, options in hub.items():
        local = {key: str(repositories[value]) for key, value in options.items()}
        with torch.no_grad():
            expected = classes[name](**local)(pictures, prompts)
        torch.testing.assert_close(torch.tensor(found[name]), expected, rtol=1e-5, atol=1e-6)

    assert "reward 'pick_score': cannot load model 'tiny/nothing'" in absent
    assert "hf download tiny/nothing" in absent
    assert "set `model:` to a directory" in absent


def test_a_hub_out_of_reach_is_told_at_once(tmp_path: Path, pictures: Tensor, prompts: list[str]) -> None:
    with serving({}) as (endpoint, _):
        pass  # its port is free again: nobody answers
    sources = {"ClipScore": {"model": "tiny/clip"}, "HPSv21": {"model": "tiny/hps"}, "MPS": {}}
    found = run(tmp_path, endpoint, sources, pictures, prompts, timeout=60)
    for message, source in zip(found.values(), ("tiny/clip", "tiny/hps", "RE-N-Y/mpsv1"), strict=True):
        assert f"{endpoint} cannot be reached" in message
        assert f"`hf download {source}`" in message
