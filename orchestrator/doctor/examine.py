"""All checks, one after another; a new one is a function and a line here."""

from collections.abc import Iterable, Iterator

from orchestrator.doctor.cluster import check_ray, check_token
from orchestrator.doctor.finding import Check, Finding, Patient
from orchestrator.doctor.kl_floor import check_kl_floor
from orchestrator.doctor.machine import (
    check_cores,
    check_disk,
    check_gpus,
    check_open_files,
    check_shared_memory,
)
from orchestrator.doctor.memory import check_memory
from orchestrator.doctor.servers import check_reward_servers
from orchestrator.doctor.storage import check_storage
from orchestrator.doctor.versions import check_versions
from orchestrator.doctor.weights import check_weights

CHECKS: tuple[Check, ...] = (
    check_versions,
    check_cores,
    check_gpus,
    check_shared_memory,
    check_open_files,
    check_disk,
    check_storage,
    check_token,
    check_ray,
    check_weights,
    check_reward_servers,
    check_memory,
    check_kl_floor,
)


def examine(patient: Patient, checks: Iterable[Check] = CHECKS) -> Iterator[Finding]:
    """Yield what every check finds; one that breaks down says so, and the others go on."""
    for check in checks:
        try:
            yield from check(patient)
        except Exception as error:  # noqa: BLE001 - a check must not hide what the others find
            name = check.__name__.removeprefix("check_").replace("_", " ")
            found = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            yield Finding(
                name=name, status="fail", found=found, mend="this check broke down: please report it"
            )
