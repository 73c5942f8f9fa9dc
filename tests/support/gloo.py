"""Scripts that run in several processes of one gloo group on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

START = """
import faulthandler, json, sys
import torch
import torch.distributed as dist

faulthandler.enable()
torch.set_num_threads(1)
store, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
given = [json.loads(argument) for argument in sys.argv[4:]]
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
"""
"""What a script begins with."""


def run_workers(script: str, directory: Path, size: int, *given: Any) -> list[Any]:
    """Run a script in so many processes; returns what each printed last, as JSON.

    Args:
        script: Goes on after ``START``: it knows ``rank``, ``size`` and ``given``.
        directory: For the file in which they meet; no two groups of one size share it.
        size: Processes.
        given: For the script, as JSON.
    """
    store = str(directory / f"store-{size}")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", START + script, store, str(rank), str(size), *map(json.dumps, given)],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        ends = [worker.communicate(timeout=500) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    said = "\n".join(errors[-1500:] for _, errors in ends)
    assert [worker.returncode for worker in workers] == [0] * size, said
    return [json.loads(output.splitlines()[-1]) for output, _ in ends]
