"""How much memory a worker of a spec's trials takes, and which cards have it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil

from orchestrator.doctor.finding import Finding, Patient, Status
from orchestrator.errors import SpecError
from orchestrator.plan import base_config
from orchestrator.spec import SweepSpec, known_pipeline
from trainers.pipelines.asking import Configs
from trainers.pipelines.families import Family

if TYPE_CHECKING:
    from trainers.memory.estimate import MemoryEstimate

_GIB = 2**30
_CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""GB of the cards that there are; the driver and whoever else is there have their share."""
_USABLE = 0.95


def check_memory(patient: Patient) -> Iterator[Finding]:
    """Tell what a worker of a trial takes at most, and whether a GPU, or the machine, has it."""
    import torch

    name = "memory of a trial"
    if patient.spec is None or not _told_of(patient.spec):
        return
    try:
        estimate = memory_of(patient.spec)
    except SpecError as error:
        yield Finding(name=name, status="fail", found=str(error), mend="change the spec")
        return
    if estimate is None:
        yield Finding(
            name=name,
            status="ok",
            found="not told before the model's configuration is here, and known by name",
        )
        return
    share = patient.spec.resources.gpus_per_worker
    if not share:
        status: Status = "ok"
        free = psutil.virtual_memory().available
        if patient.address in (None, "local") and estimate.on_cpu > free:
            status = "warn"
        yield _finding(name, status, f"{_words(estimate)}: {estimate.on_cpu / _GIB:.1f} GiB for a process")
        return
    needed, card = estimate.on_gpu, smallest_card(estimate.on_gpu)
    fits = "no card that there is" if card is None else f"a card of {card} GB"
    status = "ok"
    if torch.cuda.is_available():
        room = torch.cuda.get_device_properties(0).total_memory * min(share, 1.0)
        status = "fail" if needed > room else "ok"
    yield _finding(name, status, f"{_words(estimate)}: {needed / _GIB:.1f} GiB of a GPU, {fits}")


def memory_of(spec: SweepSpec) -> "MemoryEstimate | None":
    """Return what a worker of a trial takes; None where no adapter is trained, or the model is not known here.

    Raises:
        SpecError: The model has not what the spec asks of it.
    """
    config = base_config(spec)
    known = _known(str(config.model.pretrained), config.model.revision) if _told_of(spec) else None
    if known is None:
        return None
    from trainers.memory.estimate import estimated_memory  # imports torch

    try:
        shards = spec.resources.least_workers if spec.resources.shard else 1
        return estimated_memory(config, *known, shards=shards)
    except ValueError as error:  # what only the network's layers tell, such as targets of the adapter
        raise SpecError(f"{config.model.pretrained}: {error}") from error


def smallest_card(needed: float) -> int | None:
    """Return the GB of the smallest card on which so many bytes are free; None for more than any has."""
    return next((card for card in _CARDS if needed <= _USABLE * card * 1e9), None)


def memory_document(estimate: "MemoryEstimate", *, gpu: bool) -> dict[str, Any]:
    """Return an estimate as JSON has it, bytes."""
    needed = estimate.on_gpu if gpu else estimate.on_cpu
    return {
        "weights": estimate.weights,
        "training": estimate.training,
        "evaluation": estimate.evaluation,
        "unsplit": estimate.unsplit,
        "peak": round(needed),
        "card_gb": smallest_card(needed) if gpu else None,
    }


def _told_of(spec: SweepSpec) -> bool:
    """Whether trials train an adapter of a pipeline; a composition takes as many samples at a time as there is room."""
    return spec.model is not None and spec.models is None and spec.model.pretrained is not None


def _known(source: str, revision: str | None) -> tuple[Family, Configs] | None:
    """Return the family of a pipeline and the configurations of its components; None where one that counts lacks."""
    family, found = known_pipeline(source, revision) or (None, {})
    return (
        (family, found)
        if family is not None and {family.network, "vae", "scheduler"} <= found.keys()
        else None
    )


def _words(estimate: "MemoryEstimate") -> str:
    weights, training, evaluation = (
        f"{part / _GIB:.1f}" for part in (estimate.weights, estimate.training, estimate.evaluation)
    )
    said = f"{weights} GiB of weights, besides at most {training} in training and {evaluation} in evaluations"
    if estimate.unsplit <= 0:
        return said
    return f"{said}; {estimate.unsplit / _GIB:.1f} more where single workers sample the pretrained model"


def _finding(name: str, status: Status, found: str) -> Finding:
    mend = (
        ""
        if status == "ok"
        else (
            "halve training.batch_per_worker and double training.accumulation, which changes no result; set "
            "training.gradient_checkpointing: true; lower evaluation.batch"
        )
    )
    return Finding(name=name, status=status, found=found, mend=mend)
