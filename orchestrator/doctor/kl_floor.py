"""The floor of the KL of a spec's model, where a sweep or a preview has measured it."""

from collections.abc import Iterator

from orchestrator.doctor.finding import Finding, Patient
from orchestrator.errors import StorageError
from orchestrator.plan import base_config
from orchestrator.results.sample_cache import SampleCache, samples_key

_LARGE = 1e-3
"""Nats. Above it small KLs are rounding."""


def check_kl_floor(patient: Patient) -> Iterator[Finding]:
    """Look at what rounding alone makes of the path-wise KL."""
    if patient.spec is None:
        return
    config = base_config(patient.spec)
    if config.model.pretrained is None:
        return
    try:
        known = SampleCache(patient.storage).get(samples_key(config))
    except StorageError:
        return  # the check of the storage says so
    floor: float | None = None if known is None else known.baseline.get("kl_floor")
    name = "floor of the KL"
    if floor is None:
        said = "not measured yet: done once, with the samples of the pretrained model"
        yield Finding(name=name, status="ok", found=said)
        return
    large = floor > _LARGE
    yield Finding(
        name=name,
        status="warn" if large else "ok",
        found=f"{floor:.2g} nats in {config.training.precision}, of an adapter that hardly acts",
        mend=f"KLs below {10 * floor:.2g} nats are rounding: training.precision: fp32" if large else "",
    )
