"""The port of a trial to Ray and to the sweep's files: one over Ray Tune, one over Ray Train."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.execution.trials.device import CPU
from orchestrator.results.schema import history_table, prompts_of, samples_of
from orchestrator.results.store import SweepStore
from trainers.config import TrialJob
from trainers.patience import logger as waits
from trainers.trial_io import Sampled
from trainers.types import FloatArray, StepRecord

WAIT = "storage_wait"
"""Key of a report that tells of a wait for the storage."""
_ATTEMPTS = "attempts.json"


class StorePort:
    """Checkpoints and history in the sweep's directory; subclasses say where reports go."""

    def __init__(
        self,
        job: TrialJob,
        store: SweepStore,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: str = CPU,
    ) -> None:
        """Stand between one worker of ``job``, on a device, and the sweep's files."""
        self.job, self.store = job, store
        self.rank, self.world_size, self.device = rank, world_size, device
        self.started_at = datetime.now(UTC)
        self.restored_step = 0
        self.attempts = 1
        self.interruptions: tuple[str, ...] = ()
        """What the row shall say of attempts that continued from a checkpoint."""
        self.watch: Callable[[StepRecord], None] = lambda _: None
        """Sees every logged step, beside whom it is published to."""

    def publish(self, metrics: dict[str, Any]) -> None:
        """Send metrics to whoever watches the trial."""
        raise NotImplementedError

    def report(self, record: StepRecord) -> None:
        """Publish a logged step."""
        self.watch(record)
        self.publish(
            {
                "step": record.step,
                "kl": record.kl,
                "lagrangian": record.lagrangian,
                "kkt_residual": record.kkt_residual,
                "learning_rate": record.learning_rate,
                "seconds": record.seconds,
                "images_per_second": record.images_per_second,
                "restored_step": self.restored_step,
                "attempts": self.attempts,
                **{f"reward_{name}": value for name, value in record.rewards.items()},
                **{f"violation_{name}": value for name, value in record.violations.items()},
                **{f"multiplier_{name}": value for name, value in record.multipliers.items()},
                **{f"kl_{name}": value for name, value in record.constituents.items()},
            }
        )

    def save(self, step: int, files: dict[str, bytes], history: Sequence[StepRecord]) -> None:
        """Write checkpoint and history so far; only rank 0 does."""
        if self.rank == 0:
            attempts = {
                "started_at": self.started_at.isoformat(),
                "attempts": self.attempts,
                "rounds": self.job.rounds,
                "interruptions": self.interruptions,
            }
            self.store.save_checkpoint(
                self.job.trial_id, step, {**files, _ATTEMPTS: json.dumps(attempts).encode()}
            )
            self.store.write_history(self.job.trial_id, history_table(self.job, history))

    def restore(self) -> dict[str, bytes] | None:
        """Return the newest complete checkpoint's files."""
        found = self.store.load_checkpoint(self.job.trial_id)
        if found is None:
            return None
        step, files = found
        earlier = json.loads(files.pop(_ATTEMPTS))
        if earlier.get("rounds", 1) < self.job.rounds:
            return files  # the end of the round before, which nothing interrupted
        self.restored_step = step
        self.started_at = datetime.fromisoformat(earlier["started_at"])
        self.attempts = int(earlier["attempts"]) + 1
        interrupted = f"continued from step {self.restored_step} after an interruption"
        self.interruptions = (*earlier.get("interruptions", ()), interrupted)
        return files

    def initial(self) -> Mapping[str, bytes] | None:
        """Return the adapter of the finished trial that this one begins with."""
        return None if self.job.base is None else self.store.adapter(self.job.base) or None

    def reference(self, of: str = "evaluate") -> Mapping[str, FloatArray] | None:
        """Return the rewards of one set of samples that the sweep drew first."""
        table = self.store.baseline_samples()
        found = {} if table is None or not self._in_turn(table, of) else samples_of(table, of)
        return found if any(len(values) for values in found.values()) else None

    def sampled(self) -> Sampled | None:
        """Return the rewards of the samples on training prompts that the sweep drew first, and their prompts."""
        table = self.store.baseline_samples()
        if table is None:
            return None
        found = samples_of(table, "train")
        return (found, prompts_of(table, "train")) if any(len(values) for values in found.values()) else None

    def _in_turn(self, table: pa.Table, of: str) -> bool:
        """Whether prompts come in the order of an evaluation: in samples of an older version they may not."""
        config = self.job.config
        if config.prompts is None or of == "train":
            return True
        asked = dict.fromkeys(table.filter(pc.equal(table["set"], of))["prompt"].to_pylist())
        return tuple(asked) == config.prompts.in_turn("evaluate", config.evaluation.seed)[: len(asked)]


class _Waits(logging.Handler):
    """Passes on what the storage's patience says, from one thread."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Tell ``tell``."""
        super().__init__(logging.WARNING)
        self._tell, self._thread = tell, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on."""
        if threading.get_ident() == self._thread:
            self._tell(record.getMessage())


class TunePort(StorePort):
    """For a single-worker trial, which runs in Ray Tune's own trial process."""

    @contextlib.contextmanager
    def waits_told(self) -> Iterator[None]:
        """Publish that the trial waits for its storage, while it does: nobody reads this process's log."""
        handler = _Waits(lambda line: self.publish({WAIT: line}))
        waits.addHandler(handler)
        try:
            yield
        finally:
            waits.removeHandler(handler)

    def publish(self, metrics: dict[str, Any]) -> None:
        """Report to Ray Tune."""
        from ray import tune

        tune.report(metrics)


class PackPort(TunePort):
    """For a trial beside others in one process; the process of the trial, which waits, passes its reports on."""

    def __init__(
        self, job: TrialJob, store: SweepStore, report: Callable[[dict[str, Any]], None], *, device: str = CPU
    ) -> None:
        """Give metrics to ``report``."""
        super().__init__(job, store, device=device)
        self._report = report

    def publish(self, metrics: dict[str, Any]) -> None:
        """Give them away."""
        self._report(metrics)


class TrainPort(StorePort):
    """For one worker of a Ray Train job; rank 0's metrics reach Tune through Train's callback."""

    def publish(self, metrics: dict[str, Any]) -> None:
        """Report to Ray Train, which waits until every rank has."""
        from ray import train

        train.report(metrics)
