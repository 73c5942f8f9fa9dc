"""How much of what backpropagation gains does training gain that knows a reward by HTTP alone, 0 or 1 of a picture?

    python benchmarks/black_box.py [--weight 2] [--twin-weights 1 2] [--steps 60] [--batch 64]

The embedded pipeline, and a classifier of its pictures, "vivid": mean saturation of at least 0.75, as three in ten of
the pretrained model's have (``black_box_rewards.py``). It runs behind ``cdsweep serve-rewards`` in a process of its
own, and the trial gets 0 or 1 of each picture over HTTP. In the middle of training the server is killed, and started
again 30 seconds later: every score that the trial was given is held against the classifier itself on the same pixels,
so that none is lost and no other is put in its place.

The twin is trained by ``reward_backprop`` on the probability that a soft classifier gives (logistic in saturation), at
two weights. Both are judged by the share of vivid pictures on held-out prompts, paired with the pretrained model on the
same noise. Gains are about linear in the root of the KL: that of the twin is interpolated so to the KL of the trial.
± is the standard error over evaluation samples, of the ratio with those of both on the same noise. CPU seconds are of
one thread, the server's left out; images are those that training drew.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from black_box_rewards import Vivid
from embedded_problem import planned, start_worker
from torch import Tensor

from orchestrator.plan import PlannedTrial, make_job
from trainers.problem import run_trial, sample_pretrained, statistics
from trainers.rewards.served.protocol import TOKEN
from trainers.rewards.served.reward import Http
from trainers.trial_io import LocalTrialIO
from trainers.types import Evaluation, FloatArray

OUTAGE_SECONDS = 30.0
SAMPLING = {"steps": 5, "order": 2}
SERVED = """\
name: served
model: {pretrained: embedded}
constraints: [{reward: vivid, at_least: 0.5, unit: sigma}]
training: {primal: log_variance}
"""
POINTS = """\
[cdsweep.rewards]
vivid = black_box_rewards:Vivid
probably_vivid = black_box_rewards:ProbablyVivid
"""


class Server:
    """``cdsweep serve-rewards``, which can be killed and started again at the same port."""

    def __init__(self, spec: Path) -> None:
        """Start it, and wait for its address."""
        self._spec, self._port = spec, 0
        self.start()

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [
                Path(sys.executable).with_name("cdsweep"),
                "serve-rewards",
                self._spec,
                "--port",
                str(self._port),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split()[-1]
        self._port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """Kill it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@dataclass
class Witness:
    """Holds every score that was given against the classifier, and kills the server when so many were."""

    server: Server
    fatal: int
    given: int = 0
    outage: float | None = None
    """Seconds from the server's end to the next score; None before."""
    _killed: float = 0.0
    _thread: threading.Thread | None = field(default=None, repr=False)

    def saw(self, samples: Tensor, scores: Tensor) -> None:
        """Look at a batch."""
        pixels = (samples.detach() * 255).round().clamp(0, 255) / 255
        assert torch.equal(scores, Vivid()(pixels)), "a score is lost, or another one"
        self.given += len(scores)
        if self._thread is not None and self.outage is None:
            self.outage = time.monotonic() - self._killed
        if self._thread is None and self.given >= self.fatal:
            self._killed = time.monotonic()
            self.server.kill()
            self._thread = threading.Thread(target=self._restart)
            self._thread.start()

    def end(self) -> None:
        """Wait for the server to be there again, and kill it."""
        if self._thread is not None:
            self._thread.join()
        self.server.kill()

    def _restart(self) -> None:
        time.sleep(OUTAGE_SECONDS)
        self.server.start()


@contextmanager
def witnessed(witness: Witness) -> Iterator[None]:
    """Let it see what every reward of a server gives."""
    asked = Http.__call__

    def call(self: Http, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        scores = asked(self, samples, prompts)
        witness.saw(samples, scores)
        return scores

    Http.__call__ = call  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Http.__call__ = asked  # type: ignore[method-assign]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a trial came to on held-out prompts."""

    kl: float
    """Nats."""
    gains: FloatArray
    """``[n]``, 0 or 1 of each picture less that of the pretrained model's on the same noise."""
    images: int
    """That training drew."""
    seconds: float
    """Of CPU, of training and evaluation."""

    @property
    def gain(self) -> float:
        """Share of vivid pictures above the pretrained model's."""
        return float(self.gains.mean())

    @property
    def error(self) -> float:
        """Of the gain."""
        return float(self.gains.std(ddof=1) / len(self.gains) ** 0.5)


def planned_for(
    rewards: Mapping[str, Any], weight: float, training: Mapping[str, Any], arguments: argparse.Namespace
) -> PlannedTrial:
    """Return a trial that seeks rewards, by name, and is judged by what is vivid."""
    return planned(
        weights=dict.fromkeys(rewards, weight),
        seed=arguments.seed,
        model={"pretrained": "embedded", "lora": {"rank": 4}},
        sampling=SAMPLING,
        constraints=[
            {"reward": reward, "name": name, "at_least": 0.1, "unit": "sigma"}
            for name, reward in rewards.items()
        ],
        rewards=[] if "vivid" in rewards else [{"reward": "vivid", "role": "judge"}],
        training=dict(training),
        convergence={"window": training["steps"]},
        evaluation={"images": arguments.images, "baseline_images": arguments.images, "every": 5},
    )


def trained(trial: PlannedTrial, drawn: Mapping[str, Evaluation], sought: str) -> Judged:
    """Train and judge a trial.

    Args:
        trial: As planned.
        drawn: Samples of the pretrained model, scored by all rewards.
        sought: The one of them that the trial seeks, whoever gives it.
    """
    known = {
        name: replace(
            each, rewards={**each.rewards, "sought": each.rewards[sought]}, embeddings=None, images=None
        )
        for name, each in drawn.items()
    }
    known["train"] = replace(known["train"], rewards={"sought": known["train"].rewards["sought"]})
    io = LocalTrialIO(
        pretrained=known["evaluate"].rewards, trained_on=(known["train"].rewards, known["train"].prompts)
    )
    began = time.process_time()
    outcome = run_trial(make_job(trial, statistics(known)), io)
    found = outcome.evaluation
    assert found is not None, outcome.error
    assert np.isfinite(found.rewards["sought"]).all(), "a score is missing"
    before = drawn["evaluate"].rewards["vivid"][: len(found.kl)]
    config = trial.config.training
    return Judged(
        kl=float(found.kl.mean()),
        gains=found.rewards["vivid"] - before,
        images=config.steps * config.batch_per_worker,
        seconds=time.process_time() - began,
    )


def at_kl(twins: Sequence[Judged], kl: float) -> FloatArray:
    """Return the gains ``[n]`` of the twin at a KL: linear in its root between the nearest two, of none among them."""
    points = [(0.0, np.zeros_like(twins[0].gains))]
    points += [(twin.kl**0.5, twin.gains) for twin in sorted(twins, key=lambda twin: twin.kl)]
    place = min(max(sum(root < kl**0.5 for root, _ in points), 1), len(points) - 1)
    (low, least), (high, most) = points[place - 1], points[place]
    share = (kl**0.5 - low) / (high - low)
    return np.asarray(least + share * (most - least))


def main() -> None:
    """Train all, and print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weight", type=float, default=2.0, help="of the 0 and 1, nats per σ")
    parser.add_argument("--twin-weights", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument(
        "--estimator", choices=["score_and_path", "reused_rollouts"], default="score_and_path"
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--per-prompt", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--images", type=int, default=1024, help="of an evaluation")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start_worker()
    os.environ[TOKEN] = "of-the-benchmark"
    with registered() as folder:
        spec = folder / "served.yaml"
        spec.write_text(SERVED)
        compared(arguments, Server(spec))


def compared(arguments: argparse.Namespace, server: Server) -> None:
    """Train the trial whose reward the server gives, and its twins."""
    shown = "{:34} {:>6} {:>6} {:>16} {:>7} {:>6}"
    print(shown.format("", "weight", "KL", "vivid, gain", "images", "CPU s"), flush=True)

    def tell(name: str, weight: float, found: Judged) -> None:
        gain = f"{found.gain:.3f} ± {found.error:.3f}"
        print(
            shown.format(name, weight, f"{found.kl:.3f}", gain, found.images, f"{found.seconds:.0f}"),
            flush=True,
        )

    slope = {"steps": 90, "batch_per_worker": 8, "learning_rate": 3e-3, "primal": "reward_backprop"}
    without = {
        "steps": arguments.steps,
        "batch_per_worker": arguments.batch,
        "images_per_prompt": arguments.per_prompt,
        "learning_rate": arguments.rate,
        "primal": arguments.estimator,
    }
    both = {name: name for name in ("vivid", "probably_vivid")}
    drawn = sample_pretrained(planned_for(both, 1.0, without, arguments).config)
    print(f"of the pretrained model's {drawn['evaluate'].rewards['vivid'].mean():.3f} are vivid", flush=True)

    witness = Witness(server=server, fatal=arguments.steps * arguments.batch // 2)
    try:
        with witnessed(witness):
            opaque = {"http": {"url": server.url, "name": "vivid", "batch": 64}}
            found = trained(
                planned_for({"sought": opaque}, arguments.weight, without, arguments), drawn, "vivid"
            )
    finally:
        witness.end()
    tell(f"0 or 1 over HTTP, {arguments.estimator}", arguments.weight, found)
    assert witness.outage is not None, "the server was never killed"
    assert witness.outage >= OUTAGE_SECONDS
    print(
        f"  server killed for {OUTAGE_SECONDS:.0f} s, next score after {witness.outage:.0f} s; {witness.given} scores, "
        "each that of the classifier",
        flush=True,
    )
    twins = []
    for weight in arguments.twin_weights:
        trial = planned_for({"sought": "probably_vivid"}, weight, slope, arguments)
        twins.append(trained(trial, drawn, "probably_vivid"))
        tell("probability, reward_backprop", weight, twins[-1])
    other = at_kl(twins, found.kl)
    ratio = found.gain / float(other.mean())
    error = float((found.gains - ratio * other).std(ddof=1) / len(other) ** 0.5 / other.mean())
    print(f"at {found.kl:.3f} nats the twin gains {other.mean():.3f}: {ratio:.0%} ± {error:.0%} of it")


@contextmanager
def registered() -> Iterator[Path]:
    """Register the rewards as a package of a user's own would, here and in processes that are started."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entry = folder / "black_box_rewards-0.dist-info"
        entry.mkdir()
        (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: black-box-rewards\nVersion: 0\n")
        (entry / "entry_points.txt").write_text(POINTS)
        paths = [str(folder), str(Path(__file__).parent)]
        sys.path.insert(0, paths[0])
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        yield folder


if __name__ == "__main__":
    main()
