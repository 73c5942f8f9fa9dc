"""How the processes of a benchmark are started. Imports nothing heavy: a light parent keeps peaks of memory apart."""

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
