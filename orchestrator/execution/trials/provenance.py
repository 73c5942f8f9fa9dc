"""What a trial was made with: versions, commit, host, device, precision and sampler."""

import json
import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import orchestrator
from trainers.config import TrialConfig

_PACKAGES = ("cdsweep", "torch", "diffusers", "peft", "transformers", "ray")
_GIT_SECONDS = 10.0


def provenance(config: TrialConfig, *, device: str, commit: str | None) -> dict[str, str]:
    """Return what a trial is made with, in this process.

    Args:
        config: Of the trial.
        device: Where it computes, such as ``cuda:0``.
        commit: Of cdsweep, where the driver runs.
    """
    sampler = config.sampling.words
    if config.model.composition is not None:
        sampler = f"{config.model.composition.sampler}: {sampler}"
    found = {
        **versions(),
        "host": socket.gethostname(),
        "device": _named(device),
        "precision": config.training.precision,
        "sampler": sampler,
    }
    return found if commit is None else found | {"commit": commit}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute, those that are not installed left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def source_commit() -> str | None:
    """Return the commit of the running cdsweep, marked where files differ from it; None where nothing tells."""
    installed = distribution("cdsweep").read_text("direct_url.json")
    if installed is not None and (recorded := json.loads(installed).get("vcs_info")):
        return str(recorded["commit_id"])
    root = Path(str(orchestrator.__file__)).parents[1]
    if not (root / ".git").exists():
        return None
    asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS)  # noqa: S603 - no part of it is a user's
    except (OSError, subprocess.TimeoutExpired):  # no git here
        return None
    return answer.stdout.strip() or None


def _named(device: str) -> str:
    """Return the name of a GPU, or the machine's architecture."""
    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}"
    return f"{device} ({platform.machine()})"
