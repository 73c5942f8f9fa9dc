"""Speed and memory of one primal step on the embedded pipeline, ours against a straightforward implementation.

    python benchmarks/pipeline_throughput.py [--rounds 7] [--steps 2] [--no-malloc] [--only PART …] [--check]
    python benchmarks/pipeline_throughput.py [--sweep] --peer DIRECTORY

Batch 8, 10 sampling steps, guidance 3, rewards saturation, local contrast and CLIP, one thread. A step is forward,
backward and optimiser. Every implementation has a process of its own; in each round they take their steps in turn, so
that a disturbance of the machine meets all alike. Printed: medians over the rounds, the peak resident memory of the
process and what it grew by since before the first step, and ratios to two ways of the straightforward
implementation (``benchmarks/straightforward.py``): as it is by default, and without checkpointing.

All processes are alive at once and need about 10 GB; ``--only`` takes fewer. ``--no-malloc`` shows what the settings of
``benchmarks/environment.py`` do.

With ``--sweep`` what a trial of ``sweeps/threshold_grid.yaml`` consists of is measured instead, in CPU seconds, which
other load changes little: its whole optimiser step with what the duals are paired with, and 32 images of an evaluation
and of the pretrained model. ``--peer`` adds another checkout, whose processes take their turns beside ours; without
``--sweep`` it runs the step of that checkout's own ``benchmarks/pipeline_step.py``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from environment import child_environment

STEP = Path(__file__).with_name("pipeline_step.py")
DEFAULT, PLAIN = "straightforward", "straightforward, no checkpointing"
IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "ours": {"ours": {"rest": 2}},
    "ours, rest 0": {"ours": {"rest": 0}},
    # What comes as near to the model's law: five steps in place of eight.
    "ours, second order in 6 steps": {"ours": {"steps": 6, "order": 2, "spacing": "trailing", "rest": 1}},
    # As wherever arithmetic is not float32 throughout: reference and policy as pairs of values, not as rows.
    "ours, pairs": {"ours": {"rest": 2, "pairs": True}},
    "ours, selective": {"ours": {"rest": 2, "checkpointing": "selective"}},
    "ours, checkpointing": {"ours": {"rest": 2, "checkpointing": True}},
    "ours, blocks": {"ours": {"rest": 2, "checkpointing": "blocks"}},
    DEFAULT: {"straightforward": {}},
    PLAIN: {"straightforward": {"checkpointing": False}},
    "straightforward, two passes": {"straightforward": {"passes": 2}},
    "straightforward, two passes, no checkpointing": {
        "straightforward": {"passes": 2, "checkpointing": False}
    },
    # Another estimator, as the public code has it by default: gradients of the last fifth of the steps only.
    "straightforward, last 2 steps": {"straightforward": {"last": 2}},
}

PEER: dict[str, dict[str, Any]] = {
    "peer": {"ours": {"rest": 2}},
    "peer, checkpointing": {"ours": {"rest": 2, "checkpointing": True}},
}

SWEEP: dict[str, dict[str, Any]] = {
    "step, constrained": {"method": "constrained"},
    "step, weighted": {"method": "weighted"},
    "32 images, policy": {"method": "constrained", "draw": True},
    "32 images, pretrained": {"method": "constrained", "draw": False},
}


class Child:
    """A process with one implementation."""

    def __init__(
        self, name: str, settings: dict[str, Any], environment: dict[str, str], script: Path = STEP
    ) -> None:
        """Start it and wait until it is loaded."""
        self._process = subprocess.Popen(
            [sys.executable, str(script), name, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def steps(self, count: int) -> dict[str, Any]:
        """Let it take steps; returns their seconds and its memory."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a process ended with status {self._process.wait()}")
        return dict(json.loads(line))


def measure(names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return seconds per step of each round, and memory in MB, by implementation."""
    environment = os.environ | child_environment(malloc=not arguments.no_malloc)
    children: dict[str, Child] = {}
    found: dict[str, dict[str, Any]] = {name: {"rounds": []} for name in names}
    try:
        for name in names:
            if name in PEER:
                other = arguments.peer.resolve()
                theirs = environment | {"PYTHONPATH": str(other)}
                script = other / "benchmarks" / STEP.name
                children[name] = Child(name, shared(arguments) | PEER[name], theirs, script)
            else:
                children[name] = Child(name, shared(arguments) | IMPLEMENTATIONS[name], environment)
        for child in children.values():
            child.steps(1)  # warm-up
        for _ in range(arguments.rounds):
            for name, child in children.items():
                seen = child.steps(arguments.steps)
                found[name]["rounds"].append(statistics.fmean(seen["seconds"]))
                found[name] |= {key: seen[key] / 1e6 for key in ("peak", "increase")}
    finally:
        for child in children.values():
            child.close()
    return found


def measure_sweep(arguments: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return CPU seconds of each round, by checkout and part of a trial."""
    ours = os.environ | child_environment(malloc=not arguments.no_malloc)
    checkouts = {"ours": ours}
    if arguments.peer is not None:
        checkouts["peer"] = ours | {"PYTHONPATH": str(arguments.peer.resolve())}
    found: dict[str, dict[str, list[float]]] = {name: {part: [] for part in SWEEP} for name in checkouts}
    for part, asked in SWEEP.items():
        children = {name: Child(part, {"sweep": asked}, env) for name, env in checkouts.items()}
        try:
            for child in children.values():
                child.steps(1)  # warm-up
            for _ in range(arguments.rounds):
                for name, child in children.items():
                    found[name][part].append(child.steps(arguments.steps)["cpu"])
        finally:
            for child in children.values():
                child.close()
        line = ", ".join(f"{name} {statistics.median(found[name][part]):.3f}" for name in checkouts)
        medians = [statistics.median(rounds[part]) for rounds in found.values()]
        ratio = f", ours / peer {medians[0] / medians[1]:.2f}" if len(medians) > 1 else ""
        print(f"{part:24} CPU s: {line}{ratio}", flush=True)
    return found


def shared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that all have in common."""
    return {
        "batch": arguments.batch,
        "sampling_steps": arguments.sampling_steps,
        "guidance": arguments.guidance,
    }


def table(found: dict[str, dict[str, Any]], batch: int) -> None:
    """Print a row for each implementation."""
    bases = [name for name in (DEFAULT, PLAIN) if name in found]
    heads = f"{'':46} {'s/step':>7} {'range':>16} {'images/s':>9} {'peak MB':>8} {'increase':>9}"
    print(heads + "".join(f" | {letter}: speed   peak increase" for letter in "AB"[: len(bases)]))
    for name, row in found.items():
        seconds = statistics.median(row["rounds"])
        print(
            f"{name:46} {seconds:7.3f} {min(row['rounds']):6.3f} to {max(row['rounds']):6.3f} {batch / seconds:9.2f} "
            f"{row['peak']:8.0f} {row['increase']:9.0f}",
            end="",
        )
        for base in bases:
            other = found[base]
            faster = statistics.median(other["rounds"]) / seconds
            memory = [row[key] / other[key] for key in ("peak", "increase")]
            print(f" | {faster:7.2f}× {memory[0]:6.2f} {memory[1]:8.2f}", end="")
        print()
    for letter, base in zip("AB", bases, strict=False):
        print(f"{letter}: against '{base}'; speed is the ratio of the medians, memory that of the peaks.")
    if DEFAULT in found:
        for name in [name for name in found if name.startswith("ours")]:
            speed = statistics.median(found[DEFAULT]["rounds"]) / statistics.median(found[name]["rounds"])
            memory = found[name]["peak"] / found[DEFAULT]["peak"]
            reached = speed >= 1.5 or memory <= 2 / 3
            print(
                f"{name}: {'meets' if reached else 'misses'} the target of 1.5 times the speed or two thirds of the "
                f"memory of the straightforward implementation ({speed:.2f}, {memory:.2f})"
            )


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of the optimiser, in a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--no-malloc", action="store_true", help="leave glibc's settings as they are")
    parser.add_argument("--only", nargs="+", choices=IMPLEMENTATIONS, metavar="NAME", help="fewer rows")
    parser.add_argument("--check", action="store_true", help="compare loss and gradients, measure nothing")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument(
        "--sweep", action="store_true", help="measure the parts of a trial of the shipped sweep"
    )
    parser.add_argument("--peer", type=Path, metavar="DIRECTORY", help="another checkout")
    arguments = parser.parse_args()
    if arguments.sweep:
        found = measure_sweep(arguments)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(found, indent=2) + "\n")
        return
    if arguments.check:
        environment = os.environ | child_environment()
        command = [sys.executable, str(STEP), "check", json.dumps(shared(arguments))]
        subprocess.run(command, check=True, env=environment)
        return
    names = arguments.only or list(IMPLEMENTATIONS)
    found = measure([*names, *(PEER if arguments.peer is not None else ())], arguments)
    settings = "glibc's defaults" if arguments.no_malloc else "memory kept between steps"
    print(
        f"batch {arguments.batch}, {arguments.sampling_steps} sampling steps, guidance {arguments.guidance:g}, "
        f"one thread, {settings}; {arguments.rounds} rounds of {arguments.steps} steps"
    )
    table(found, arguments.batch)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
