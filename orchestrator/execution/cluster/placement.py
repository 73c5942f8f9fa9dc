"""How many trials run at a time: computed, so that trial drivers and workers cannot wait for one another for ever."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from orchestrator.errors import PlacementError
from orchestrator.execution.cluster.capacity import Capacity, look
from orchestrator.spec import ResourcesSpec
from trainers.config import ModelConfig

DRIVER_RESOURCES = {"node:__internal_head__": 0.001}
"""Of the trial process that starts a Train job: it holds no CPU, or two drivers could starve both their workers."""

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_A_WORD = 30.0
"""Until a trial that finds no room is reported."""
_SECONDS_BETWEEN_WORDS = 60.0
PATIENCE = 300.0
"""Seconds until a sweep ends whose trials no node can hold, after it had begun: a lost machine may come back."""

_MOST_PACKED = 4
"""Trials that share a process unasked."""
_AHEAD = 64
"""Trials that wait at most, for the autoscaler to see what is wanted."""
_GANGS_AHEAD = 4
"""The same where each has a process of its own that waits."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the trials of a sweep share the cluster at its beginning."""

    concurrent: int
    """Trials at a time."""
    workers: int
    """Single workers that fit at a time."""
    gang: bool
    """Whether a trial is a Train job of its own; single-worker trials run in the reused trial process."""
    pack: int = 1
    """Trials that share a process and the resources of one."""
    growing: bool = False
    """Whether the cluster starts nodes as they are needed."""


def place(resources: ResourcesSpec, capacity: Capacity, trials: int, *, packable: bool = False) -> Placement:
    """Return how many of ``trials`` run at a time on the cluster as it is.

    Args:
        resources: Of each.
        capacity: Of the cluster.
        trials: To be run.
        packable: Whether they can share processes.

    Raises:
        PlacementError: Not one trial can ever be placed; the message has the numbers.
    """
    missing = unplaceable(resources, capacity)
    if missing is not None and not capacity.autoscaler:
        raise PlacementError(missing)
    single = capacity.workers(resources)
    wanted = trials if resources.concurrent_trials == "auto" else resources.concurrent_trials
    pack = packed(resources, single, min(wanted, trials), packable=packable)
    return Placement(
        concurrent=max(1, min(single // resources.least_workers * pack, wanted, trials)),
        pack=pack,
        workers=max(1, single),
        gang=resources.most_workers > 1,
        growing=capacity.autoscaler,
    )


def packed(resources: ResourcesSpec, workers: int, trials: int, *, packable: bool) -> int:
    """Return how many of the trials that run at a time share a process: of ``auto`` no more than leave none idle."""
    if not packable:
        return 1
    if resources.pack != "auto":
        return resources.pack
    return max(1, min(_MOST_PACKED, -(-trials // max(1, workers))))


def unplaceable(resources: ResourcesSpec, capacity: Capacity) -> str | None:
    """Say what the living nodes lack to hold one trial; None if they lack nothing."""
    workers, cpus, gpus = resources.least_workers, resources.cpus_per_worker, resources.gpus_per_worker
    needs = f"{workers} worker(s) with {cpus:g} CPU and {gpus:g} GPU each"
    largest, single = capacity.largest, capacity.workers(resources)
    for what, need, most in (("CPU", cpus, largest.cpus), ("GPU", gpus, largest.gpus)):
        if need > most:
            return (
                f"no node can hold a worker: a trial needs {needs}, and the largest node has {most:g} {what}; "
                f"lower resources.{what.lower()}s_per_worker"
            )
    if single == 0:
        return (
            f"no node can hold a worker: a trial needs {needs}, and no node has both; lower "
            "resources.cpus_per_worker or resources.gpus_per_worker"
        )
    if single < workers:
        cpu, gpu = sum(node.cpus for node in capacity.nodes), sum(node.gpus for node in capacity.nodes)
        return (
            f"no trial can be placed: a trial needs {needs}, {workers * cpus:g} CPU and {workers * gpus:g} GPU in "
            f"all, and the cluster has {cpu:g} CPU and {gpu:g} GPU on {len(capacity.nodes)} node(s), room for "
            f"{single} worker(s); lower resources.workers, cpus_per_worker or gpus_per_worker"
        )
    return None


def idle_gpus(model: ModelConfig, resources: ResourcesSpec, gpus: float) -> str | None:
    """Say that networks will compute on the CPU beside GPUs that the trials did not ask for; None if they will not."""
    if resources.gpus_per_worker or not gpus or not model.networks:
        return None
    return (
        f"resources.gpus_per_worker is 0: networks compute on the CPU, and the cluster's {gpus:g} GPU stay idle; "
        "1 gives each worker one, a fraction shares it"
    )


class Room:
    """Follows the cluster as it grows and shrinks: how many trials may be under way, and what keeps one waiting."""

    def __init__(
        self,
        resources: ResourcesSpec,
        *,
        searched: bool,
        pack: int = 1,
        say: Callable[[str], None],
        look: Callable[[], Capacity] = look,
        clock: Callable[[], float] = monotonic,
        patience: float = PATIENCE,
    ) -> None:
        """Begin to watch.

        Args:
            resources: Of each trial.
            searched: Whether trials are chosen by what others found: then few are chosen before they can run.
            pack: Trials that share the resources of one.
            say: Tells the user a line.
            look: Returns the cluster's capacity.
            clock: In seconds.
            patience: Until a sweep ends that no node can hold.
        """
        self._resources, self._searched, self._pack, self.say = resources, searched, pack, say
        self._look, self._clock, self._patience = look, clock, patience
        self._seen, self._at = look(), clock()
        self._empty: float | None = None
        self._idle: float | None = None
        self._told: float | None = None
        self.error: PlacementError | None = None
        """Why the sweep must end."""

    def limit(self) -> int:
        """Return how many trials may have been handed out and not have ended, at least one."""
        capacity, resources = self._now(), self._resources
        fits = capacity.workers(resources) // resources.least_workers * self._pack
        if capacity.autoscaler:
            # Demand that it can see. What is beyond its limits waits, and holds nothing meanwhile.
            ahead = _GANGS_AHEAD if resources.most_workers > 1 else _AHEAD
            fits += min(ahead, max(2, fits)) if self._searched else ahead
        if resources.concurrent_trials != "auto":
            fits = min(fits, resources.concurrent_trials)
        return max(1, fits)

    def watch(self, running: int, waiting: int, *, quiet: bool = False) -> None:
        """Report trials that find no room, and give up where none will come.

        Args:
            running: Trials that have a process.
            waiting: Trials that have none yet.
            quiet: Whether nobody has reported for long: the process of a trial of several workers runs, and waits,
                before its workers do.
        """
        capacity, now = self._now(), self._clock()
        missing = unplaceable(self._resources, capacity)
        apart = self._resources.most_workers > 1 or self._pack > 1
        unmanned = apart and quiet and capacity.pending_groups > 0
        stuck = unmanned or (waiting > 0 and running == 0)
        self._empty = (self._empty or now) if missing is not None and running + waiting else None
        self._idle = (self._idle or now) if stuck else None
        since = self._empty if missing is not None else self._idle
        if since is None:
            self._told = None
            return
        waited = now - since
        if missing is not None and self._hopeless(capacity, waited):
            self.error = PlacementError(missing)
            return
        if waited >= _SECONDS_TO_A_WORD and (
            self._told is None or now - self._told >= _SECONDS_BETWEEN_WORDS
        ):
            self._told = now
            self.say(
                f"waiting for room since {waited:.0f} s: {missing or self._busy()}{self._hope(capacity)}"
            )

    def _hopeless(self, capacity: Capacity, waited: float) -> bool:
        if capacity.autoscaler:
            return capacity.refused and not capacity.coming and waited >= _SECONDS_TO_A_WORD
        return waited >= self._patience

    def _busy(self) -> str:
        resources = self._resources
        return (
            f"the nodes could hold a trial ({resources.least_workers} worker(s) with "
            f"{resources.cpus_per_worker:g} CPU and {resources.gpus_per_worker:g} GPU each), but others use them"
        )

    def _hope(self, capacity: Capacity) -> str:
        if capacity.coming:
            return f"; {capacity.coming} node(s) are being started"
        return "; the autoscaler has been asked" if capacity.autoscaler else ""

    def _now(self) -> Capacity:
        if self._clock() - self._at >= _SECONDS_BETWEEN_LOOKS:
            self._at = self._clock()
            with suppress(
                Exception
            ):  # a cluster that does not answer has its own errors, and what was known holds
                self._seen = self._look()
        return self._seen
