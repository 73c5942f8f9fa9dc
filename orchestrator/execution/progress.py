"""What runs at the moment: kept by a Tune callback, shown in the terminal, written as the sweep's heartbeat."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from rich.console import Console, RenderableType
from rich.live import Live

from orchestrator.execution.cluster.placement import Room
from orchestrator.execution.trials.attempts import Attempts, announced
from orchestrator.execution.trials.ports import WAIT
from orchestrator.plan import Plan, PlannedTrial, describe, labels
from orchestrator.report.terminal.live import TRAIL, clock, live_table, worst_violation

_QUIET_SECONDS = 20.0

State = Literal["running", "retrying", "succeeded", "failed", "infeasible"]
_MISSED = ("failed", "infeasible")


@dataclass(kw_only=True)
class TrialProgress:
    """The last that was heard of one trial."""

    trial_id: str
    label: str
    """Method, thresholds or weights, seed."""
    most_steps: int
    asked: str | None = None
    """What it is asked for, where it has ended and answers a search."""
    state: State = "running"
    since: float = field(default_factory=time.monotonic)
    metrics: dict[str, Any] = field(default_factory=dict)
    trouble: str | None = None
    """What ended its last attempt, or the trial."""
    kl_trail: deque[float] = field(default_factory=lambda: deque(maxlen=TRAIL))
    """Last values, nats."""
    violation_trail: deque[float] = field(default_factory=lambda: deque(maxlen=TRAIL))
    """Last values of the largest violation, reward units."""

    def heard(self, metrics: Mapping[str, Any]) -> None:
        """Take note of what it reported."""
        self.metrics |= metrics
        if "kl" in metrics:
            self.kl_trail.append(float(metrics["kl"]))
        if (worst := worst_violation(metrics)) is not None:
            self.violation_trail.append(worst[1])

    def record(self) -> dict[str, Any]:
        """Return it as JSON, for the heartbeat and the live table."""
        return {
            "trial_id": self.trial_id,
            "state": self.state,
            "label": self.asked or self.label,
            "most_steps": self.most_steps,
            **self.metrics,
            "kl_trail": list(self.kl_trail),
            "violation_trail": list(self.violation_trail),
        }

    def line(self) -> str:
        """Return its state in one line of text."""
        again = self.metrics.get("restored_step")
        origin = f"  (continued from step {again})" if again else ""
        trouble = f"  ({self.trouble})" if self.trouble and self.state in ("retrying", *_MISSED) else ""
        label = self.asked or self.label
        return (
            f"{self.trial_id}  {self.state:10}  {label}  {measured(self.metrics)}{origin}{trouble}".rstrip()
        )


def measured(metrics: Mapping[str, Any]) -> str:
    """Return step, KL, violations and multipliers as text."""
    if "step" not in metrics:
        return ""
    parts = [f"step {metrics['step']}", f"KL {metrics['kl']:.3f}"]
    violations = _named(metrics, "violation_")
    if violations:
        parts.append("g " + " ".join(f"{name}={value:+.2g}" for name, value in violations.items()))
    multipliers = _named(metrics, "multiplier_")
    if multipliers:
        parts.append("λ " + " ".join(f"{name}={value:.2f}" for name, value in multipliers.items()))
    return "  ".join(parts)


def _named(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}


class Progress:
    """All trials of a run; safe to read from other threads."""

    def __init__(self, plan: Plan, finished: frozenset[str]) -> None:
        """Begin with ``finished`` trials done."""
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._labels: dict[str, str] = {}
        self._trials: dict[str, TrialProgress] = {}
        for trial in plan.trials:
            self.add(trial)
        self._labels |= labels(plan.trials)
        self.planned, self.already = plan.most, len(finished)
        self._before = finished
        needs = plan.resources
        self.price: float | None = None
        """Of a trial, per hour."""
        if needs.price_per_gpu_hour is not None:
            self.price = needs.price_per_gpu_hour * needs.most_workers * needs.gpus_per_worker
        self.note: str | None = None
        """How far a search is."""
        self.began = time.monotonic()

    def add(self, trial: PlannedTrial) -> None:
        """Take in a trial that may start."""
        with self._lock:
            self._steps[trial.trial_id] = trial.config.training.steps
            self._labels[trial.trial_id] = describe(trial.config)

    def update(self, trial_id: str, state: State, metrics: Mapping[str, Any] | None = None) -> TrialProgress:
        """Take note of a trial's state."""
        with self._lock:
            trial = self._trials.setdefault(
                trial_id,
                TrialProgress(
                    trial_id=trial_id, label=self._labels[trial_id], most_steps=self._steps[trial_id]
                ),
            )
            # One that did not answer has not failed.
            trial.state = "succeeded" if trial.asked and state in _MISSED else state
            trial.heard(metrics or {})
            return trial

    def asks(self, trial_id: str, what: str | None) -> None:
        """Take note of what a trial that has ended is asked for; None: it has answered."""
        trial = self.update(trial_id, "succeeded")
        with self._lock:
            trial.asked = what

    def running(self) -> list[TrialProgress]:
        """Return the trials that have not ended."""
        with self._lock:
            return [trial for trial in self._trials.values() if trial.state in ("running", "retrying")]

    def ended(self) -> int:
        """Return how many trials of the plan have ended, earlier runs included."""
        with self._lock:
            here = {
                t.trial_id for t in self._trials.values() if t.asked or t.state in ("succeeded", *_MISSED)
            }
            return len(self._before | here)

    def seconds_left(self, concurrent: int) -> float | None:
        """Estimate the time to the end of the sweep from the trials that this run has finished."""
        here, left = self.ended() - self.already, self.planned - self.ended()
        if here == 0 or left <= 0:
            return None
        return left * (time.monotonic() - self.began) / max(here, concurrent)

    def heartbeat(self) -> list[dict[str, Any]]:
        """Return the running trials as JSON."""
        return [trial.record() for trial in self.running()]

    def details(self, concurrent: int) -> dict[str, Any]:
        """Return what the driver's state says beside its process."""
        return {"running": self.heartbeat(), "ended": self.ended(), "closing": self.closing(concurrent)}

    def closing(self, concurrent: int) -> list[str]:
        """Return how far the sweep is, in lines: trials done, time and cost left, the gap of a search."""
        total = f"{self.ended()} of {self.planned} trials done"  # or fewer, with a search
        if (remaining := self.seconds_left(concurrent)) is not None:
            total += f", about {clock(remaining)} left"
            if self.price is not None:
                total += f", at most {remaining / 3600 * concurrent * self.price:.2f} to pay"
        return [total, *([] if self.note is None else [self.note])]


class Watcher(tune.Callback):
    """Feeds Tune's events into ``Progress``; pickled without it, because Tune stores its callbacks."""

    def __init__(
        self,
        progress: Progress,
        attempts: Attempts,
        room: Room,
        on_change: Callable[[TrialProgress], None],
        on_failed: Callable[[str, str, int], None],
    ) -> None:
        """Tell ``on_change`` of every event and ``on_failed`` the id, error and last step of a trial given up."""
        self._progress, self._attempts, self._room = progress, attempts, room
        self._on_change, self._on_failed = on_change, on_failed
        self._looked, self._heard = 0.0, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything behind."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """Look for trials that find no room, once a second."""
        if (now := time.monotonic()) - self._looked < 1.0:
            return
        self._looked = now
        states = Counter(trial.status for trial in trials)
        quiet = now - self._heard > _QUIET_SECONDS
        self._room.watch(running=states["RUNNING"], waiting=states["PENDING"], quiet=quiet)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """A trial was placed."""
        self._tell(trial, "running")

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002 - Tune's signature
        trials: list[Any],  # noqa: ARG002 - the same
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002 - the same
    ) -> None:
        """A trial reported, perhaps that it is about to fail."""
        self._heard = time.monotonic()
        if (error := announced(result)) is not None:
            self._allow(trial, again=self._attempts.announce(trial.config["trial_id"], error))
            return
        if (line := result.get(WAIT)) is not None:
            self._room.say(f"{trial.config['trial_id']} waits: {line}")
            return
        reached = int(result.get("restored_step") or 0)
        self._allow(trial, again=self._attempts.reached(trial.config["trial_id"], reached))
        wanted = ("step", "kl", "kkt_residual", "seconds", "images_per_second", "pid", "restored_step")
        metrics = {
            key: value
            for key, value in result.items()
            if key in wanted or key.startswith(("reward_", "violation_", "multiplier_"))
        }
        self._tell(trial, "running", metrics)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """An attempt failed; Tune starts the trial again, from its checkpoint."""
        trial_id = trial.config["trial_id"]
        lost = self._progress.update(trial_id, "retrying")
        self._allow(trial, again=self._attempts.failed(trial_id))
        lost.trouble = self._attempts.why(trial_id)
        self._on_change(lost)

    def _allow(self, trial: Any, *, again: bool) -> None:
        """Let Tune start a trial again after its next failure, or not: it has one count, and we have two."""
        trial.max_failures = -1 if again else trial.num_failures

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 - Tune's signature
        """A trial failed in every attempt."""
        last = (getattr(trial, "error_file", None) and _last_line(trial.error_file)) or "no message"
        trial_id = trial.config["trial_id"]
        gone = self._progress.update(trial_id, "failed")
        verdict = self._attempts.verdict(trial_id, last)
        gone.trouble = verdict
        self._on_failed(trial_id, verdict, int(gone.metrics.get("step", 0)))
        self._on_change(gone)

    def _tell(self, trial: Any, state: State, metrics: Mapping[str, Any] | None = None) -> None:
        self._on_change(self._progress.update(trial.config["trial_id"], state, metrics))


class Silent(TrialProgressCallback):
    """Stands in for Tune's own, which prints a line on stdout for a trial that ends without a report."""

    def _print(self, msg: str) -> None:
        """Print nothing."""


class StopWhen(tune.Stopper):
    """Ends every trial once a stop is wanted; they go on from their checkpoints when the sweep is resumed."""

    def __init__(self, wanted: Callable[[], bool]) -> None:
        """Ask ``wanted`` at every turn of Tune's loop."""
        self._wanted = wanted

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything behind: Tune stores its stopper, and nothing reads it back."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - Tune's signature
        """Whether one trial should stop."""
        return self._wanted()

    def stop_all(self) -> bool:
        """Whether all should stop."""
        return self._wanted()


def _last_line(path: str) -> str:
    """Return the last line of an error file: the exception without its traceback."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a path of Tune's
            lines = [line.strip() for line in file if line.strip()]
    except OSError as error:
        return f"the error's text is lost ({error})"
    return lines[-1] if lines else "no message"


class Display:
    """Live table on a terminal, plain lines elsewhere; always on stderr."""

    def __init__(self, console: Console, progress: Progress, concurrent: int) -> None:
        """Show ``progress`` on ``console``."""
        self._console, self._progress, self._concurrent = console, progress, concurrent
        self._live: Live | None = None
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        """Start the live table if this is a terminal."""
        if self._console.is_interactive:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the live table away."""
        if self._live is not None:
            self._live.stop()

    def changed(self, trial: TrialProgress) -> None:
        """Print a line when a trial starts, ends or is retried; above a live table only of one that missed its end."""
        if self._shown.get(trial.trial_id) == trial.state or (trial.asked and trial.state == "running"):
            return
        self._shown[trial.trial_id] = trial.state
        if self._live is None or trial.state in _MISSED:
            done = f"[{self._progress.ended()}/{self._progress.planned}]"
            self._console.print(f"{done} {trial.line()}", soft_wrap=True)

    def ended(self, trial_id: str, row: Mapping[str, Any] | None) -> None:
        """Take note of a trial's end by its row; without one Ray has an error to tell."""
        if row is not None:
            trial = self._progress.update(trial_id, row["status"])
            trial.trouble = row["error"]
            self.changed(trial)

    def say(self, line: str) -> None:
        """Print a line above the live table."""
        self._console.print(line, soft_wrap=True)

    def _table(self) -> RenderableType:
        return live_table(
            self._progress.heartbeat(),
            console=self._console,
            closing=self._progress.closing(self._concurrent),
        )

    def noted(self, note: str | None) -> None:
        """Show how far a search is."""
        if note != self._progress.note:
            self._progress.note = note
            if self._live is None and note is not None:
                self._console.print(note, soft_wrap=True)
