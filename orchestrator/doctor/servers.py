"""Servers of the rewards of a spec: whether they answer, and have what is asked for."""

from collections.abc import Iterator

from orchestrator.doctor.finding import Finding, Patient
from orchestrator.plan import base_config
from trainers.patience import Patience
from trainers.reward_parameters import HttpParameters

_SECONDS = 10.0


def check_reward_servers(patient: Patient) -> Iterator[Finding]:
    """Ask every server once."""
    if patient.spec is None:
        return
    config = base_config(patient.spec)
    for reward in config.scored:
        if reward.kind == "http":
            parameters = HttpParameters.model_validate(reward.parameters)
            yield _finding(f"server of reward {reward.name}", parameters)


def _finding(name: str, asked: HttpParameters) -> Finding:
    from trainers.rewards.served.client import Client
    from trainers.rewards.served.dialects import DIALECTS, Asked
    from trainers.rewards.served.reward import offered

    client = Client(
        asked.url, timeout=min(asked.timeout, _SECONDS), concurrency=1, patience=Patience(seconds=0)
    )
    try:
        known = offered(client, DIALECTS[asked.dialect], Asked(name=asked.name, version=asked.version))
    except ValueError as error:
        mend = (
            "start it, or write its address as url; cdsweep serve-rewards SPEC serves the rewards of a spec"
        )
        return Finding(name=name, status="fail", found=str(error), mend=mend)
    if asked.name not in known:
        found = f"{asked.url} has no reward {asked.name!r}, only {', '.join(sorted(known)) or 'none'}"
        return Finding(name=name, status="fail", found=found, mend="write one of these as name")
    version = known[asked.name].version
    if asked.version not in (None, version):
        found = f"{asked.url} has version {version!r} of {asked.name!r}, not {asked.version!r}"
        return Finding(name=name, status="fail", found=found, mend="serve that version, or leave it out")
    return Finding(name=name, status="ok", found=f"{asked.url} has {asked.name!r}, version {version!r}")
