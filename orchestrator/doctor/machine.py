"""This machine: GPUs, disk, shared memory, open files."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from huggingface_hub import constants

from orchestrator.doctor.finding import Finding, Patient, Status

_GIB = 2**30
_SHARED = Path("/dev/shm")  # noqa: S108 - the system's own


def check_gpus(patient: Patient) -> Iterator[Finding]:
    """Look at the GPUs that torch sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = patient.spec.resources.gpus_per_worker if patient.spec else 0.0
    if count:
        names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
        yield Finding(name="gpus", status="ok", found=f"{count} × {names}, CUDA {torch.version.cuda}")
        return
    present = shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()
    if present:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        yield Finding(
            name="gpus",
            status="fail",
            found=f"the machine has a driver, and torch {torch.__version__} (built for {built}) sees no GPU",
            mend="install the torch build for the driver's CUDA (https://pytorch.org), and look at "
            "CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
    elif wanted and patient.address in (None, "local"):
        yield Finding(
            name="gpus",
            status="fail",
            found=f"none here, and the spec asks for {wanted:g} per worker",
            mend="run on a machine or cluster that has them (--address), or set resources.gpus_per_worker=0",
        )
    else:
        yield Finding(name="gpus", status="ok", found="none here; sweeps run on the CPU, or on a cluster")


def check_disk(patient: Patient) -> Iterator[Finding]:
    """Look at the free space of what sweeps write to: results, Ray's own files, downloaded weights."""
    places = {"Ray's files": tempfile.gettempdir(), "weights": constants.HF_HUB_CACHE}
    if "://" not in patient.storage:
        places = {"results": patient.storage, **places}
    for noun, place in places.items():
        path = Path(place).expanduser().absolute()
        while not path.exists():
            path = path.parent
        usage = shutil.disk_usage(path)
        free, share = usage.free / _GIB, usage.used / (usage.used + usage.free)
        status: Status = "fail" if free < 1 else "warn" if free < 10 or share > 0.95 else "ok"
        yield Finding(
            name=f"disk for {noun}",
            status=status,
            found=f"{free:.1f} GiB free at {path} ({share:.0%} used)",
            mend=""
            if status == "ok"
            else "make room: Ray keeps no objects on a disk that is 95 % full, and a trial "
            "whose checkpoint finds no room stops",
        )


def check_shared_memory(patient: Patient) -> Iterator[Finding]:
    """Look at where Ray's processes share objects, and workers of a trial their gradients."""
    del patient
    if not _SHARED.is_dir():
        yield Finding(name="shared memory", status="ok", found=f"no {_SHARED} on this system")
        return
    size, wanted = shutil.disk_usage(_SHARED).total, min(0.3 * psutil.virtual_memory().total, 2 * _GIB)
    short = size < wanted
    yield Finding(
        name="shared memory",
        status="warn" if short else "ok",
        found=f"{size / _GIB:.1f} GiB at {_SHARED}",
        mend=f"give the container more: docker run --shm-size={wanted / _GIB:.0f}g" if short else "",
    )


def check_open_files(patient: Patient) -> Iterator[Finding]:
    """Look at how many files a process may open; every process of Ray's holds sockets to the others."""
    del patient
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    status: Status = "ok" if unlimited or soft >= 4096 else "warn" if soft >= 1024 else "fail"
    yield Finding(
        name="open files",
        status=status,
        found=f"{'no limit' if unlimited else soft} per process",
        mend=""
        if status == "ok"
        else f"ulimit -n {65536 if hard < 0 else min(65536, hard)} before ray start",
    )


def check_cores(patient: Patient) -> Iterator[Finding]:
    """Look at cores and memory."""
    del patient
    memory = psutil.virtual_memory()
    low = memory.available < 2 * _GIB
    yield Finding(
        name="cores and memory",
        status="warn" if low else "ok",
        found=f"{os.cpu_count()} cores, {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
        mend="end other programs: Ray kills trials when memory is 95 % full" if low else "",
    )
