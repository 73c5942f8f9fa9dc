"""Trials that share a process: an actor runs those of one pack in threads, and the process of each only waits.

    Tune trial -> run_packed -> PackHost.run -> trainers.problem, beside other trials (trainers.hosts)

To Tune each is a trial of its own, which reports, fails and is started again by itself; where the actor is lost all of
its trials are, and go on from their checkpoints in the next one. This module imports next to nothing: the process that
only waits loads it too.
"""

import contextlib
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from orchestrator.execution.trials.shares import Shares

_PATIENCE = 1.0
"""Seconds that a host waits for a report before it says that there is none."""
_THREADS = 4
"""Of a host for each of its trials: one that trains, one that waits for reports; those of a lost host come on top."""
_SECONDS_TO_ANOTHER = 60.0
"""Until a host that does not answer is left for another."""


class Packs:
    """The hosts of a sweep, for the driver: there as soon as trials need them, gone with the block."""

    def __init__(self, name: str, size: int, needs: dict[str, float], hosts: Callable[[], int]) -> None:
        """Pack ``size`` trials into each of up to ``hosts()`` processes, which hold the resources of one trial.

        Args:
            name: Of the sweep's run, no other's on this cluster.
            size: Trials of a process.
            needs: Ray's resources of a process.
            hosts: How many the cluster holds at the moment.
        """
        self.size = size
        """Trials of a process."""
        self._name, self._needs, self._most = name, needs, hosts
        self._groups: list[Any] = []
        self._actors: list[Any] = []
        self._at: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Begin without any."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the hosts, and with them what still runs."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        for group in self._groups:
            ray.util.remove_placement_group(group)

    def place(self, trial_id: str) -> dict[str, Any]:
        """Return name and number of the host for a trial: a new one while there is room, or else the emptiest."""
        held = Counter(self._at.values())
        least = min(range(len(self._actors)), key=lambda host: held[host], default=None)
        room = len(self._actors) < max(1, self._most())
        if least is None or (held[least] and (room or held[least] >= self.size)):
            least = len(self._actors)
            self._start()
        self._at[trial_id] = least
        return {"name": self._name, "number": least}

    def left(self, trial_id: str) -> None:
        """Take note that a trial has ended."""
        self._at.pop(trial_id, None)

    def _start(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # A group of its own: whoever waits for room is seen by who looks for waiting groups.
        group = ray.util.placement_group([self._needs])
        host: Any = ray.remote(PackHost)
        self._actors.append(
            host.options(
                name=called(self._name, len(self._actors)),
                num_cpus=self._needs["CPU"],
                num_gpus=self._needs.get("GPU", 0),
                max_concurrency=_THREADS * self.size,
                max_restarts=-1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=group),
            ).remote()
        )
        self._groups.append(group)


def called(name: str, number: int | str) -> str:
    """Return the name of a host among actors, or what the names of all begin with."""
    return f"{name}-{number}"


class Superseded(Exception):  # noqa: N818 - says what happened
    """Another attempt of the trial runs."""


class _Attempt:
    """An attempt of a trial, and what it has reported."""

    def __init__(self) -> None:
        self._reports: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.superseded, self.ended = threading.Event(), threading.Event()

    def report(self, metrics: dict[str, Any]) -> None:
        """Keep metrics until they are asked for.

        Raises:
            Superseded: Nobody asks any more.
        """
        if self.superseded.is_set():
            raise Superseded
        self._reports.put(metrics)

    def reported(self) -> list[dict[str, Any]]:
        """Return what has not been asked for; waits a moment for the first."""
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._reports.get(timeout=0.0 if self.ended.is_set() else _PATIENCE))
            while True:
                found.append(self._reports.get_nowait())
        return found


class PackHost:
    """Runs the trials of a pack, in the process of an actor."""

    def __init__(self) -> None:
        """Begin without any."""
        from trainers.hosts.pack import Pack

        self._pack, self._shares, self._lock = Pack(), Shares(), threading.Lock()
        self._attempts: dict[str, _Attempt] = {}
        self._last: dict[str, _Attempt] = {}

    def alive(self) -> None:
        """Answer."""

    def run(self, config: dict[str, Any], attempt: str) -> None:
        """Run a trial to its end; where an earlier attempt, that has lost its waiting process, still runs, after it.

        Raises:
            Exception: What the trial raised.
        """
        from orchestrator.execution.trials.trial import run_beside

        own, trial_id = self._of(attempt), config["trial_id"]
        with self._lock:
            before, self._last[trial_id] = self._last.get(trial_id), own
        if before is not None:
            before.superseded.set()
            before.ended.wait()
        try:
            with self._shares.taken() as share:
                run_beside(config, self._pack, own.report, share)
        finally:
            own.ended.set()

    def reports(self, attempt: str) -> list[dict[str, Any]]:
        """Return what an attempt has reported since it was asked last, perhaps nothing."""
        return self._of(attempt).reported()

    def _of(self, attempt: str) -> _Attempt:
        with self._lock:
            return self._attempts.setdefault(attempt, _Attempt())


def run_packed(config: dict[str, Any]) -> None:
    """Run a trial beside others in the Tune trial process, which only waits for the host and passes on its reports."""
    import ray
    from ray import tune

    attempt, host = uuid.uuid4().hex, _reached(**config["host"])
    running = host.run.remote(config, attempt)
    over = False
    while not over:
        over = bool(ray.wait([running], timeout=0)[0])
        for metrics in ray.get(host.reports.remote(attempt)):
            tune.report(metrics)
    try:
        ray.get(running)
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None


def _reached(name: str, number: int) -> Any:
    """Return the host of a number, or another of the run where that one is lost and finds no room again."""
    import ray

    own = called(name, number)
    while True:
        named = [host for host in ray.util.list_named_actors() if host.startswith(called(name, ""))]
        for candidate in sorted(named, key=lambda host: (host != own, host)):
            with contextlib.suppress(
                ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError
            ):
                host = ray.get_actor(candidate)
                ray.get(host.alive.remote(), timeout=_SECONDS_TO_ANOTHER)
                return host
        time.sleep(_PATIENCE)
