"""Two terminals start one sweep at the same moment, again and again: one runs it, the other is told who does.

    python benchmarks/two_starts.py [--rounds 20] [--s3]

Each round is a sweep of its own of two small trials, in a directory or in a bucket of a server on loopback. Checked is
that one command ends well and the other with exit code 2, before Ray, naming the first and since when; and that every
trial was trained once, from its first step to its last. Printed are seconds from the start to the refusal.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pyarrow.compute as pc
from moto.server import ThreadedMotoServer

from orchestrator.results.store import SweepStore

CDSWEEP = str(Path(sys.executable).with_name("cdsweep"))
STEPS = 20
SPEC = f"""\
model: {{mixture: {{weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}}}
sampling: {{steps: 4}}
constraints: [{{reward: {{linear: {{direction: [1.0, 0.0]}}}}, name: right, at_least: {{grid: [0.2, 0.4]}}}}]
training: {{steps: {STEPS}, batch_per_worker: 8, width: 8, checkpoint_every: 5}}
evaluation: {{images: 64, every: 5}}
"""


def started(name: str, folder: Path, storage: str) -> tuple[int, int, float, str]:
    """Run the sweep by the real command; returns its process, exit code, seconds and what it said."""
    began = time.monotonic()
    process = subprocess.Popen(
        [CDSWEEP, "run", "spec.yaml", "--name", name, "--storage", storage, "--address", "local", "--yes"],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    _, said = process.communicate()
    return process.pid, process.returncode, time.monotonic() - began, said


def one_round(name: str, folder: Path, storage: str) -> tuple[float, float]:
    """Start a sweep twice; returns the seconds of who was refused, and of who ran.

    Raises:
        SystemExit: Both ran, none did, or a trial was trained twice; with what they said.
    """
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: started(name, folder, storage), range(2)))
    (pid, ran, long, there), (_, refused, short, said) = sorted(both, key=lambda each: each[1])
    named = re.search(rf"is running already, driven by \S+ \(process {pid}\) since 20", said)
    if (ran, refused) != (0, 2) or not named or "Ray:" in said:
        raise SystemExit(f"{name}: {ran} and {refused}\n{there}\n{said}")
    store = SweepStore(storage, name)
    rows, history = store.trials(), store.history()
    for trial_id in rows["trial_id"].to_pylist():
        steps = history.filter(pc.equal(history["trial_id"], trial_id))["step"].to_pylist()
        if steps != sorted(set(steps)):
            raise SystemExit(f"{name}: {trial_id} was trained twice: {steps}")
    if rows["status"].to_pylist() != ["succeeded"] * 2 or set(rows["steps"].to_pylist()) != {STEPS}:
        raise SystemExit(f"{name}: {rows.select(['trial_id', 'status', 'steps']).to_pylist()}")
    return short, long


def main() -> None:
    """Run the rounds and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--s3", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder, storage = Path(made), f"{made}/results"
        (folder / "spec.yaml").write_text(SPEC)
        if asked.s3:
            server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
            server.start()
            host, port = server.get_host_and_port()
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            }  # fmt: skip
            boto3.client("s3").create_bucket(Bucket="sweeps")
            storage = "s3://sweeps/results"
        refused = []
        for number in range(asked.rounds):
            short, long = one_round(f"round-{number}", folder, storage)
            refused.append(short)
            print(
                f"round {number}: one ran for {long:.1f} s, the other was refused after {short:.1f} s",
                flush=True,
            )
    print(
        f"{asked.rounds} rounds: refused after {min(refused):.1f} to {max(refused):.1f} s, no trial trained twice"
    )


if __name__ == "__main__":
    main()
