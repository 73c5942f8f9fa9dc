"""Scripts that run in several processes of one gloo group on loopback."""

import contextlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START = """
import faulthandler, json, sys
import torch
import torch.distributed as dist

faulthandler.enable(sys.stderr)
torch.set_num_threads(1)
store, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
given = [json.loads(argument) for argument in sys.argv[4:]]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
"""
"""What a script begins with."""
_SECONDS = 500

# Most of what a worker takes is imports: one process does them, and workers are its copies.
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["trainers.problem", "trainers.models.pipeline_policy"])


def run_workers(script: str, directory: Path, size: int, *given: Any) -> list[Any]:
    """Run a script in so many processes; returns what each printed last, as JSON.

    Args:
        script: Goes on after ``START``: it knows ``rank``, ``size`` and ``given``.
        directory: For the file in which they meet; no two groups of one size share it.
        size: Processes.
        given: For the script, as JSON.
    """
    store = str(directory / f"store-{size}")
    said = [directory / f"said-{size}-{rank}" for rank in range(size)]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        _WARM.Process(
            target=_work,
            args=(
                START + script,
                [store, str(rank), str(size), *map(json.dumps, given)],
                said[rank],
                environment,
            ),
        )
        for rank in range(size)
    ]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join(_SECONDS)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    errors = "\n".join(place.with_suffix(".errors").read_text()[-1500:] for place in said)
    assert [worker.exitcode for worker in workers] == [0] * size, errors
    return [json.loads(place.read_text().splitlines()[-1]) for place in said]


def _work(script: str, arguments: Sequence[str], said: Path, environment: Mapping[str, str]) -> None:
    """Run a script as ``python -c`` does."""
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    with (
        said.open("w") as output,
        said.with_suffix(".errors").open("w") as errors,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            exec(compile(script, "<worker>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own
        except BaseException:
            traceback.print_exc()
            raise
