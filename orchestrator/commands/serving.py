"""``cdsweep serve-rewards``: the rewards of a spec behind the HTTP protocol, for a sweep that runs elsewhere."""

import hashlib
import json
import os
import secrets
import socket
import sys
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.specs import load_asked
from orchestrator.errors import UsageError
from orchestrator.terminal import AsJson, Overrides, Spec, print_json, reported, say

if TYPE_CHECKING:
    from collections.abc import Container

    from trainers.config import RewardConfig, TrialConfig
    from trainers.rewards.served.server import Served

PORT = 8478


def serve_rewards(
    spec: Spec,
    overrides: Overrides = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; by default this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen at; 0 for a free one.")] = PORT,
    token: Annotated[
        bool,
        typer.Option(
            "--token/--no-token",
            help="Ask clients for the bearer token of CDSWEEP_REWARD_TOKEN, or for a new one that is printed.",
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Serve the rewards of SPEC over HTTP until it is stopped; ``reward: {http: {url: …, name: NAME}}`` asks them."""
    with reported():
        from orchestrator.plan import base_config
        from orchestrator.spec import resolve_rewards
        from trainers.rewards.served.protocol import TOKEN
        from trainers.rewards.served.server import application, serve

        loaded = load_asked(spec, overrides)
        config, judges = base_config(loaded), resolve_rewards(loaded).judges
        given = os.environ.get(TOKEN, "").strip()
        secret = (given or secrets.token_urlsafe(24)) if token else None
        rewards = _served(config, judges)
        listening = _listening(host, port)
        name, taken = listening.getsockname()[:2]
        url = f"http://[{name}]:{taken}" if ":" in name else f"http://{name}:{taken}"
        new = secret if secret != given else None
        if as_json:
            offered = [{"name": name, "version": served.version} for name, served in rewards.items()]
            print_json({"url": url, "token": new, "rewards": offered})
        else:
            typer.echo(f"serving {', '.join(rewards)} at {url}")
            if new is not None:
                typer.echo(f"export {TOKEN}={new}")
            say("ctrl-C ends it")
        sys.stdout.flush()  # whoever started this process waits for the address
        serve(application(rewards, secret), listening)


def _served(config: "TrialConfig", judges: "Container[str]") -> "dict[str, Served]":
    """Build the rewards and the judges of a spec by name, each with a version of what it is made of.

    Those of groups of prompts score any prompt: which of them count is for who asks to say.

    Raises:
        UsageError: One cannot be built, or scores no images; says why.
    """
    from trainers.config import REWARD_PARAMETERS
    from trainers.rewards.base import build_reward
    from trainers.rewards.served.server import Served

    if (points := next((r for r in config.rewards if r.kind in REWARD_PARAMETERS), None)) is not None:
        raise UsageError(
            f"the reward {points.name!r} ({points.kind}) scores points of a mixture, and the protocol is one of images"
        )
    asked = [
        reward.model_copy(update={"where": None})
        for reward in config.scored
        if reward in config.rewards or reward.name in judges
    ]
    try:
        return {
            reward.name: Served(reward=build_reward(reward, config.prompts), version=_version(reward, config))
            for reward in asked
        }
    except ValueError as error:
        raise UsageError(str(error)) from error


def _version(reward: "RewardConfig", config: "TrialConfig") -> str:
    """Return a version that changes with code, parameters and weights of a reward."""
    from orchestrator.spec import meant

    place = f"rewards.{reward.name}"
    contents = {
        key.removeprefix(place): content
        for key, content in config.contents.items()
        if key == place or key.startswith(f"{place}.")
    }
    data = meant(reward).model_dump(mode="json", exclude={"name"}) | {"contents": contents}
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
    return f"{installed_version('cdsweep')}+{digest}"


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: The address is taken, or none of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; --port 0 takes a free one"
        ) from error
