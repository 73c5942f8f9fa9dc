"""How the processes of a benchmark are started, and what memory they took. Imports nothing heavy."""

from pathlib import Path

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc otherwise gives large blocks back to the system whenever a step frees its graph, and faults the same pages in
again at the next one. It reads these when a process starts, so they must be in the environment of the child."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def child_environment(*, malloc: bool = True) -> dict[str, str]:
    """Return what is added to the environment of every process that is measured."""
    return ONE_THREAD | (MALLOC if malloc else {})


def peak() -> int:
    """Return the most resident memory that this process had, bytes; ``ru_maxrss`` would begin with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024  # KiB
