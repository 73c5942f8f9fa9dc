"""One run of a sweep: plan -> missing trials -> Ray Tune -> results -> summary.

The sweep's own files are its only truth. Whatever dies, a new run builds what is missing from them: trials
without a row are run, from their last checkpoint where they have one.
"""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from orchestrator.errors import CdsweepError, ClusterError, Interrupted
from orchestrator.execution.cluster.capacity import look
from orchestrator.execution.cluster.placement import DRIVER_RESOURCES, Placement, Room, idle_gpus, place
from orchestrator.execution.cluster.places import sharing_places
from orchestrator.execution.cluster.session import connected
from orchestrator.execution.dashboard_page.announce import announce
from orchestrator.execution.driver import Driver
from orchestrator.execution.handout import Handout
from orchestrator.execution.metrics import SweepGauges
from orchestrator.execution.sampling.baseline import ensure_baseline
from orchestrator.execution.sampling.previews import preview_of_samples, previewed
from orchestrator.execution.takeover import take_over
from orchestrator.execution.trials import trial as trials
from orchestrator.execution.trials.attempts import Attempts
from orchestrator.execution.trials.gang import run_gang
from orchestrator.execution.trials.packs import Packs, run_packed
from orchestrator.frontier.problems import exact_problem
from orchestrator.frontier.sampled import hopeless
from orchestrator.plan import Plan, base_config
from orchestrator.report.figures.preview import preview_figure
from orchestrator.report.page.write import LiveReport
from orchestrator.report.sweep import pretrained_rewards, read_plan, read_spec
from orchestrator.report.terminal.tables import preview_table
from orchestrator.results.schema import Names, trained
from orchestrator.results.store import SweepStore
from orchestrator.search.base import Search, SearchContext
from orchestrator.search.several import build_search
from orchestrator.search.spending import Spending
from orchestrator.spec import (
    SweepSpec,
    Tracker,
    asks_box,
    budgeted_wall,
    chosen_trackers,
    lasting,
    unpackable,
)
from trainers.config import BaselineStatistics


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, as far as it does not change the results."""

    spec: SweepSpec
    address: str | None = None
    consent: Callable[[list[str]], None] = lambda _: None
    """Asked before trials that the preview calls hopeless are started; raises to refuse."""
    preview: bool = True
    """Look at the samples of the pretrained model first."""
    fresh: bool = False
    """Draw these samples anew, and run every trial, also where another sweep of the storage has them."""


def run_sweep(
    plan: Plan, driver: Driver, baseline: BaselineStatistics | None, options: RunOptions, console: Console
) -> None:
    """Run every trial of the plan that has no results yet.

    Args:
        plan: What to run.
        driver: Of the sweep, whose files are there.
        baseline: To resolve thresholds with; None: the pretrained model is sampled first.
        options: Storage, cluster and search.
        console: Where progress is shown, on stderr.

    Raises:
        PlacementError: The cluster can never hold a trial.
        ClusterError: Ray cannot be reached, or was lost.
        UsageError: A tracker cannot be used here; says what to install.
        LeaseLostError: Another process drives the sweep now.
        Interrupted: By a signal, ``cdsweep stop`` or the end of ``budget.wall``; what finished is kept, the rest can be
            resumed.
    """
    store = driver.store
    driver.began(len(plan.trials))
    trackers = chosen_trackers(options.spec.trackers, os.environ)
    finished = store.finished()
    missing = [trial for trial in plan.trials if trial.trial_id not in finished]
    names = [Names.of(base_config(options.spec)), *{Names.of(trial.config) for trial in plan.trials}]
    if not missing and (
        not (plan.searched or asks_box(options.spec))
        or (baseline is not None and _begin(plan, driver, baseline, options.spec).exhausted)
    ):
        store.write_units(names)
        driver.outcome = "ended"
        return
    if driver.spent(wall := budgeted_wall(options.spec)):
        raise _interrupted(driver)
    with (
        _resumable(driver),
        driver.at_work(wall),
        connected(options.address) as cluster,
        sharing_places(base_config(options.spec)),
    ):
        announce(store)
        placement = place(
            plan.resources,
            look(),
            len(missing) + plan.searched or len(options.spec.seeds),
            packable=unpackable(options.spec) is None,
        )
        console.print(
            f"Ray: {cluster.address}, {cluster.cpus:g} CPU, {cluster.gpus:g} GPU, {placement.concurrent} trial(s) at a "
            f"time"
            + (f", {placement.pack} in a process" if placement.pack > 1 else "")
            + (" and more as nodes come" if placement.growing else "")
            + (f", dashboard {cluster.dashboard}" if cluster.dashboard else ""),
            soft_wrap=True,
        )
        if (idle := idle_gpus(base_config(options.spec).model, plan.resources, cluster.gpus)) is not None:
            _warn(console, idle)
        if baseline is None:
            baseline = ensure_baseline(
                plan, base_config(options.spec), store, placement, console, fresh=options.fresh
            )
        store.write_units(names)
        if not options.fresh:
            take_over(plan, store, baseline, console)
        _look_ahead(plan, store, baseline, options, console)
        search = _begin(plan, driver, baseline, options.spec, placement.concurrent)
        driver.noted(len(plan.trials))  # with what has been taken over
        if not search.exhausted:
            plan = _tune(plan, driver, baseline, console, search, placement, trackers)
    if driver.stop.wanted():
        raise _interrupted(driver)
    finished = store.finished()  # once: it reads every row
    if left := [trial for trial in plan.trials if trial.trial_id not in finished]:
        raise ClusterError(
            f"Ray ended with {len(left)} of {len(plan.trials)} trials unfinished (the first is {left[0].trial_id}); "
            f"what finished is kept, `cdsweep resume {store.url()}` goes on"
        )
    for trial_id in store.checkpointed():  # no search has any trained further
        store.drop_checkpoints(trial_id)
    driver.noted(len(plan.trials))
    driver.outcome = "ended"


def _look_ahead(
    plan: Plan, store: SweepStore, baseline: BaselineStatistics, options: RunOptions, console: Console
) -> None:
    """Show what samples of the pretrained model say of the thresholds, once; ask before what they call hopeless.

    Raises:
        UsageError: It was asked, and the answer was no.
    """
    configs = previewed(options.spec, plan)
    composed = base_config(options.spec).model.composition is not None
    if not options.preview or composed or not configs or store.preview() is not None:
        return
    table = store.baseline_samples()
    if table is None and exact_problem(configs[0]) is None:
        return
    try:
        document = preview_of_samples(configs, baseline, table)
    except ValueError as error:  # too few samples of a prompt
        console.print(f"no preview: {error}", soft_wrap=True)
        return
    console.print(preview_table(document))
    for line in (doubtful := hopeless(document)):
        console.print(f"warning: {line}", soft_wrap=True)
    options.consent(doubtful)
    store.write_preview(document)
    for name, data in preview_figure(document).items():
        store.write_figure(name, data)


def _begin(
    plan: Plan, driver: Driver, baseline: BaselineStatistics, spec: SweepSpec, concurrent: int = 1
) -> Search:
    """Build the sweep's searches from its files."""
    store = driver.store
    directory = Path(store.url())
    finished = {row["trial_id"]: row for row in trained(store.trials()).to_pylist()}
    spending = Spending.of(
        spec,
        clock=lambda: driver.seconds,
        slots=concurrent,
        planned=[trial.trial_id for trial in plan.trials],
        finished=finished,
    )
    search = build_search(
        SearchContext(
            spec=spec,
            plan=plan,
            baseline=baseline,
            finished=finished,
            pretrained=pretrained_rewards(store, baseline),
            spending=spending,
            answers=lambda trial_id: store.answers(trial_id).to_pylist(),
            directory=directory if directory.is_dir() else None,
            continuable=frozenset(store.checkpointed()),
        )
    )
    # A driver may have gone before it took note of a trial, or of a round that has replaced answers.
    if (table := search.table()) is not None and _last(table) != _last(store.bounds()):
        store.write_bounds(table)
    return search


def _last(bounds: pa.Table | None) -> list[dict[str, Any]]:
    """Return what is known now, and after how many trials."""
    return [] if bounds is None else bounds.slice(max(bounds.num_rows - 1, 0)).to_pylist()


def _tune(
    plan: Plan,
    driver: Driver,
    baseline: BaselineStatistics,
    console: Console,
    search: Search,
    placement: Placement,
    trackers: tuple[Tracker, ...],
) -> Plan:
    """Hand the trials to Ray Tune and wait for the end; returns the plan with what the searches chose."""
    import ray
    from ray import tune

    from orchestrator.execution.progress import Display, Progress, Silent, StopWhen, Watcher
    from orchestrator.execution.searcher import PlanSearcher
    from orchestrator.execution.trackers.callback import Trackers

    store = driver.store

    def say(line: str) -> None:
        display.say(line)

    progress = Progress(plan, store.finished() & {trial.trial_id for trial in plan.trials})
    attempts = Attempts(plan.resources.retries)
    room = Room(plan.resources, searched=plan.searched > 0, pack=placement.pack, say=say)
    statuses = trained(store.trials())["status"].to_pylist()
    gauges = SweepGauges(store.name, planned=len(plan.trials), statuses=statuses)
    needs = trials.worker_resources(plan.resources)
    run: Any = run_gang if placement.gang else trials.run_alone
    packs = None
    if placement.pack > 1:
        run = run_packed
        packs = Packs(
            f"{store.name}-{uuid.uuid4().hex[:8]}",
            placement.pack,
            needs,
            lambda: room.limit() // placement.pack,
        )
    handout = Handout(plan, driver, baseline, search, gauges=gauges, attempts=attempts, packs=packs)
    waits = placement.gang or packs is not None  # the process of a trial, for those that hold the resources
    with (
        packs or nullcontext(),
        # What Ray keeps of its own is never read again, and must not wait for a storage that is out of reach.
        tempfile.TemporaryDirectory(prefix="cdsweep-", ignore_cleanup_errors=True) as scratch,
        gauges,
        Trackers(trackers, store, lambda text: _warn(console, text)) as tracking,
        Display(console, progress, placement.concurrent) as display,
        LiveReport(store, say) as live,
    ):
        handout.shown(progress, display, live, scratch)
        driver.tells(lambda: progress.details(placement.concurrent))
        tuner = tune.Tuner(
            tune.with_resources(
                run, tune.PlacementGroupFactory([dict(DRIVER_RESOURCES if waits else needs)])
            ),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(search, handout.task, handout.ended, room.limit),
                num_samples=-1,
                # A second trial in the same process starts in a tenth of a second.
                reuse_actors=not placement.gang,
                trial_name_creator=lambda t: t.config["trial_id"],
                trial_dirname_creator=lambda t: t.config["trial_id"],
            ),
            run_config=tune.RunConfig(
                name=f"tune-{os.getpid()}-{datetime.now(UTC):%Y%m%d%H%M%S%f}",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=-1 if attempts.retries.losses else 0),
                callbacks=[
                    Watcher(progress, attempts, room, display.changed, handout.give_up),
                    Silent(),
                    tracking,
                ],
                stop=StopWhen(lambda: driver.stop.wanted() or room.error is not None),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, tune.error.TuneError, ConnectionError) as error:
            raise ClusterError(f"Ray was lost: {str(error).splitlines()[0]}") from error
        if room.error is not None:
            raise room.error

    return handout.plan


def _warn(console: Console, text: str) -> None:
    console.print(f"warning: {text}", soft_wrap=True)


@contextmanager
def _resumable(driver: Driver) -> Iterator[None]:
    """Within the block whatever ends it after a request to stop is that request."""
    try:
        yield
    except BaseException:
        if driver.stop.wanted():
            raise _interrupted(driver) from None
        raise


def _interrupted(driver: Driver) -> CdsweepError:
    """Return why the sweep goes no further here; where that was asked for, it is stopped."""
    if driver.lost is not None:
        return driver.lost
    store = driver.store
    plan, finished = read_plan(store), store.finished()
    left = sum(trial.trial_id not in finished for trial in plan.trials)
    searching = plan.searched or asks_box(read_spec(store))
    driver.outcome = "stopped" if left or searching else "ended"
    undone, then = f"{left} of {len(plan.trials)} trials unfinished", "finishes them"
    if not left:
        undone, then = (
            ("its search unfinished", "goes on") if searching else ("all trials done", "reports them")
        )
    if driver.overrun:
        return Interrupted(
            f"budget.wall is spent, {lasting(driver.seconds)}, with {undone}; cdsweep run with a longer one {then}"
        )
    return Interrupted(f"stopped with {undone}; `cdsweep resume {store.url()}` {then}")
