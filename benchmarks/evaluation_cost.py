"""Time and memory of an evaluation, against those of an earlier commit, in one run.

    python benchmarks/evaluation_cost.py [--before COMMIT] [--pairs 4] [--rounds 4]

Two evaluations: 32 images of the shipped pipeline with an adapter, scored by its CLIP and saturation, and 16,384
samples of a mixture. Each commit has a process of its own, from its own checkout; they take rounds in turn, in both
orders, so that a disturbance of the machine meets both alike. Printed: the median over the rounds of the ratio of the
processor's seconds, and the ratio of the median peaks of resident memory, which differ by 4 % between two processes of
one commit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from environment import child_environment, peak

ROOT = Path(__file__).parents[1]
BEFORE = "3cb9480"
"""The last commit whose samples have no density ratio of their paths."""
KINDS = ("pipeline", "mixture")


def serve(kind: str) -> None:
    """Evaluate once for every line on stdin; answer with seconds and peak memory, in JSON."""
    evaluation = _evaluation(kind)
    evaluation()
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        evaluation()
        seconds = time.process_time() - began
        print(json.dumps({"seconds": seconds, "peak": peak()}), flush=True)


def _evaluation(kind: str) -> Callable[[], Any]:
    """Return what is measured, of the checkout that is first on the path."""
    # Here: the process that compares imports no torch.
    import torch  # noqa: PLC0415
    from embedded_problem import planned, start_worker  # noqa: PLC0415

    from trainers.config import MixtureConfig, SamplingConfig  # noqa: PLC0415
    from trainers.evaluate import evaluate  # noqa: PLC0415
    from trainers.models.build import build_policy  # noqa: PLC0415
    from trainers.models.mixture_policy import MixturePolicy  # noqa: PLC0415
    from trainers.rewards.analytic import Linear  # noqa: PLC0415
    from trainers.rewards.base import build_reward  # noqa: PLC0415
    from trainers.workers.collective import Collective  # noqa: PLC0415

    start_worker()
    rewards: dict[str, Any]
    if kind == "pipeline":
        config = planned(sampling={"steps": 10, "guidance": 3.0}).config
        policy: Any = build_policy(config)
        rewards = {r.name: build_reward(r) for r in config.rewards if r.name != "local_contrast"}
    else:
        means, covariances = ((-1.0, 0.0), (1.5, 0.5)), (((0.3, 0.0), (0.0, 0.3)), ((0.4, 0.1), (0.1, 0.2)))
        mixture = MixtureConfig(weights=(0.5, 0.5), means=means, covariances=covariances)
        policy = MixturePolicy.build(mixture, SamplingConfig(steps=48), 64)
        rewards = {"x": Linear((1.0, 0.0))}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    samples = 32 if kind == "pipeline" else 16_384
    return lambda: evaluate(policy, rewards, samples=samples, seed=0, collective=Collective())


class Child:
    """A process of one checkout."""

    def __init__(self, checkout: Path, kind: str) -> None:
        """Start it and wait until it is warm."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | child_environment() | {"PYTHONPATH": str(checkout)},
        )
        self._answer()

    def once(self) -> dict[str, float]:
        """Let it evaluate; returns seconds and peak memory."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with status {self._process.wait()}")
        return dict(json.loads(line))


def compare(before: Path, kind: str, pairs: int, rounds: int) -> tuple[list[float], float, float]:
    """Return the ratios of seconds of every round, that of the peaks, and the seconds of an evaluation."""
    ratios, seconds = [], []
    peaks: dict[str, list[float]] = {"before": [], "now": []}
    for _ in range(pairs):
        children, last = (
            {"before": Child(before, kind), "now": Child(ROOT, kind)},
            dict[str, dict[str, float]](),
        )
        try:
            for number in range(rounds):
                for name in sorted(children, reverse=number % 2 == 1):
                    last[name] = children[name].once()
                ratios.append(last["now"]["seconds"] / last["before"]["seconds"])
                seconds.append(last["now"]["seconds"])
        finally:
            for child in children.values():
                child.close()
        for name, measured in last.items():
            peaks[name].append(measured["peak"])
    memory = statistics.median(peaks["now"]) / statistics.median(peaks["before"])
    return ratios, memory, statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--pairs", type=int, default=4, help="of processes, one of each commit")
    parser.add_argument("--rounds", type=int, default=4, help="of every pair")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return
    git = ["git", "-C", str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "before"
        subprocess.run(
            [*git, "worktree", "add", "--quiet", "--detach", str(checkout), arguments.before], check=True
        )
        try:
            for kind in KINDS:
                ratios, memory, seconds = compare(checkout, kind, arguments.pairs, arguments.rounds)
                low, _, high = statistics.quantiles(ratios)
                print(
                    f"{kind}: {seconds:.3f} s, {statistics.median(ratios):.3f} times those of {arguments.before} "
                    f"(quartiles {low:.3f} to {high:.3f}), peak memory {memory:.3f} times",
                    flush=True,
                )
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(checkout)], check=True)


if __name__ == "__main__":
    main()
