"""How many images a second do trials that share a process train on, beside processes of their own on the same core?

    python benchmarks/packed.py [--trials 4] [--steps 12] [--chains 8 5x2]

Constrained trials of ``sweeps/threshold_grid.yaml``, local contrast rising from trial to trial, on the embedded
pipeline: each alone, one after another in one process of one thread, and all packed in that process
(``resources.pack``). As in that sweep they share the noise of their batches, of which packed ones roll the reference
out once. CPU seconds are those of training, for as many processes on one core take turns. Packed trials must be what
they are alone, to the last bit of their adapters.
"""

import argparse
import os
import threading
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from embedded_problem import job_of, planned, sampled, start_worker

from trainers.alignment import paired
from trainers.config import TrialJob
from trainers.hosts.pack import Pack
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import StepRecord, TrialOutcome

BATCH = 8


class Clock(LocalTrialIO):
    """Takes the CPU time of the process when the first step was logged, and the last one."""

    began = 0.0
    ended = 0.0

    def report(self, record: StepRecord) -> None:
        """Take the time."""
        super().report(record)
        self.began, self.ended = self.began or time.process_time(), time.process_time()


def main() -> None:
    """Print images per CPU second of both."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12, help="the first of which is not timed")
    parser.add_argument("--chains", nargs="+", default=["8", "5x2"], metavar="K|Kx2")
    arguments = parser.parse_args()
    start_worker()
    print(f"{'chain':>6} {'paired':>7} {'alone, images/s':>16} {'packed':>7} {'times':>6}  same")
    for chain in arguments.chains:
        steps, _, order = chain.partition("x")
        sampling = {"steps": int(steps), **({"order": 2} if order else {"rest": 2})}
        for pairing in ("noise", "stored"):
            jobs, known = _jobs(sampling, pairing, arguments.trials, arguments.steps)
            alone = [_alone(job, known) for job in jobs]
            paired._known.clear()  # noqa: SLF001 - as in a process of its own
            packed, seconds = _packed(jobs, known)
            images = BATCH * (arguments.steps - 1) * len(jobs)
            rate, beside = images / sum(taken for _, taken in alone), images / seconds
            same = all(one.adapter == other.adapter for (one, _), other in zip(alone, packed, strict=True))
            print(
                f"{chain:>6} {pairing:>7} {rate:16.2f} {beside:7.2f} {beside / rate:6.2f}  {same}", flush=True
            )


def _jobs(
    sampling: dict[str, int], pairing: str, count: int, steps: int
) -> tuple[list[TrialJob], LocalTrialIO]:
    trials = [
        planned(
            constraints=[
                {"reward": "saturation", "at_least": 0.5, "unit": "sigma"},
                {"reward": "local_contrast", "at_least": 0.3 + 0.1 * number, "unit": "sigma"},
                {"reward": "clip", "at_least": 0.1, "unit": "sigma"},
            ],
            sampling=sampling,
            training={"steps": steps, "batch_per_worker": BATCH},
            duals={"kind": "nu_pi", "rate": 0.3, "start": 1.5, "paired": pairing},
            convergence={"tolerance": 1.0e-9},
            evaluation={"images": 32, "baseline_images": 512, "every": 1},
        )
        for number in range(count)
    ]
    samples = sampled(trials[0].config)
    known = LocalTrialIO(trained_on=(samples["train"].rewards, samples["train"].prompts))
    return [job_of(trial, samples) for trial in trials], known


def _alone(job: TrialJob, known: LocalTrialIO) -> tuple[TrialOutcome, float]:
    paired._known.clear()  # noqa: SLF001 - as in a process of its own
    clock = Clock(trained_on=known.trained_on)
    outcome = run_trial(job, clock)
    return outcome, clock.ended - clock.began


def _packed(jobs: list[TrialJob], known: LocalTrialIO) -> tuple[list[TrialOutcome], float]:
    pack, clocks = Pack(), [Clock(trained_on=known.trained_on) for _ in jobs]
    found: dict[int, TrialOutcome] = {}

    def run(number: int) -> None:
        with pack.trial() as host:
            found[number] = run_trial(jobs[number], clocks[number], host)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[number] for number in range(len(jobs))], max(c.ended for c in clocks) - min(
        c.began for c in clocks
    )


if __name__ == "__main__":
    main()
