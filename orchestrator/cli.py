"""The command line: one short command per stage. Everything slow is imported inside its command."""

import sys
from functools import partial
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands import dashboard
from orchestrator.commands.again import Retry, retried, with_other_resources
from orchestrator.commands.certify import certify
from orchestrator.commands.describe import describe
from orchestrator.commands.doctor import doctor
from orchestrator.commands.frontier import frontier, report, show_outcome, warn_of_files
from orchestrator.commands.housekeeping import gc, rm
from orchestrator.commands.jobs import (
    Detach,
    JobAddress,
    Resolved,
    is_remote,
    logs,
    reach,
    run_as_job,
    show_status,
    status_of_job,
    stop_job,
)
from orchestrator.commands.picking import export, pick, sample
from orchestrator.commands.serving import serve_rewards
from orchestrator.commands.specs import load_asked, plan, planned, preview, refuse_changed, schema, show_plan
from orchestrator.errors import Interrupted, UsageError
from orchestrator.terminal import (
    Address,
    AsJson,
    Fresh,
    Overrides,
    Spec,
    Storage,
    Sweep,
    accept_all_text,
    find_sweep,
    print_json,
    quiet_libraries,
    reported,
    say,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.execution.driver import Driver
    from orchestrator.plan import Plan
    from orchestrator.results.store import SweepStore
    from orchestrator.spec import SweepSpec
    from trainers.config import BaselineStatistics

EXIT_SOME_FAILED = 3

app = typer.Typer(
    name="cdsweep",
    help="Sweep constraint thresholds of diffusion models; see the trade-off frontier of reward versus KL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(logs)
app.command()(doctor)
app.command()(plan)
app.command()(preview)
app.command()(schema)
app.command()(frontier)
app.command()(report)
app.command()(pick)
app.command()(export)
app.command()(sample)
app.command()(certify)
app.command()(describe)
app.command()(rm)
app.command()(gc)
app.command()(serve_rewards)
app.add_typer(dashboard.app, name="dashboard")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cdsweep {installed_version('cdsweep')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[  # noqa: ARG001 - its callback has ended the command
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Sweep constraint thresholds of diffusion models; see the trade-off frontier of reward versus KL."""
    accept_all_text()
    quiet_libraries()


@app.command()
def run(
    spec: Spec,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the sweep, in place of the spec's.", show_default=False)
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where results go, in place of the spec's.", show_default=False),
    ] = None,
    address: Address = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before hopeless trials.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop after the plan; start and write nothing.")
    ] = False,
    preview_first: Annotated[
        bool,
        typer.Option("--preview/--no-preview", help="Look at samples of the pretrained model first."),
    ] = True,
    fresh: Fresh = False,
    detach: Detach = False,
    resolved: Resolved = False,
    as_json: AsJson = False,
) -> None:
    """Run all trials of SPEC and show the frontier; what has finished before is not run again."""
    with reported():
        loaded = load_asked(spec, overrides, name, storage, resolved=resolved)
        if resolved:
            refuse_changed(loaded)
        if not dry_run:
            reach(address)
        plan, baseline, hopeless = planned(loaded)
        console = stderr()
        show_plan(plan, baseline, console)
        if dry_run:
            if as_json:
                print_json(plan.to_json(baseline=baseline))
            return
        _consent(hopeless, yes=yes)
        if detach or is_remote(address):
            run_as_job(loaded, address, detach=detach, preview=preview_first, fresh=fresh, as_json=as_json)
            return
        from orchestrator.execution.driver import Driver
        from orchestrator.results.store import SweepStore

        consent = partial(_consent, yes=yes or bool(hopeless))  # asked once is enough
        with Driver(SweepStore(loaded.storage, loaded.name), say) as driver:
            plan = _create(driver, loaded, plan, baseline, fresh=fresh)
            _finish(
                driver,
                plan,
                baseline,
                loaded,
                address,
                as_json=as_json,
                consent=consent,
                preview_first=preview_first,
                fresh=fresh,
            )


@app.command("list")
def list_(storage: Storage = "results", as_json: AsJson = False) -> None:
    """List the sweeps in a storage, the one that was last at work first."""
    with reported():
        from orchestrator.report.status import statuses
        from orchestrator.results.catalog import require_storage

        require_storage(storage)
        found = statuses(storage)
        if as_json:
            print_json({"storage": storage, "sweeps": found})
            return
        from orchestrator.report.terminal.tables import sweeps_table

        stdout().print(sweeps_table(found))
        for line in (each for each in found if each["state"] == "unreadable"):
            say(f"warning: {line['sweep']}: {line['problem']}")


@app.command()
def status(
    sweep: Sweep,
    storage: Storage = "results",
    address: JobAddress = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until it ends, or ctrl-C.")] = False,
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="Of running trials: state, kl, violation, left or trial.")
    ] = "state",
    as_json: AsJson = False,
) -> None:
    """Show how far a sweep is."""
    with reported():
        if watch:
            from orchestrator.commands.watch import watch_sweep

            watch_sweep(find_sweep(sweep, storage), sort, as_json=as_json)
            return
        document = _status(find_sweep(sweep, storage)) if address is None else status_of_job(sweep, address)
        if as_json:
            print_json(document)
            return
        if address is not None:
            show_status(document)
            return
        from orchestrator.report.terminal.tables import status_table

        stdout().print(status_table(document))


@app.command()
def stop(sweep: Sweep, storage: Storage = "results", address: JobAddress = None) -> None:
    """Stop a running sweep; it can be resumed."""
    with reported():
        if address is not None:
            stop_job(sweep, address)
            return
        store = find_sweep(sweep, storage)
        state = _status(store)["state"]
        if state not in ("running", "waiting"):
            raise UsageError(f"{store.url()} is not running: it is {state}")
        store.request_stop()
        say(f"asked {store.name} to stop; running trials keep their last checkpoints")


@app.command()
def resume(
    sweep: Sweep,
    storage: Storage = "results",
    retry: Annotated[
        Retry | None,
        typer.Option(help="Run such trials again, from their beginning.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="resources.KEY=VALUE", help="Other resources; repeatable.", show_default=False
        ),
    ] = None,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a sweep; finished trials are kept, interrupted ones go on from their checkpoints."""
    with reported():
        from orchestrator.execution.driver import Driver
        from orchestrator.report.sweep import known_baseline, read_plan, read_spec

        reach(address)
        store = find_sweep(sweep, storage)
        read_spec(store)  # or nothing is written
        if detach or is_remote(address):
            store.await_driver(say)
            if overrides or retry is not None:
                with Driver(store, say) as driver:
                    _change(driver, overrides, retry)
            loaded = read_spec(store).model_copy(update={"storage": store.storage, "name": store.name})
            run_as_job(loaded, address, detach=detach, as_json=as_json)
            return
        with Driver(store, say) as driver:
            _change(driver, overrides, retry)
            loaded = read_spec(store)
            refuse_changed(loaded)
            _finish(driver, read_plan(store), known_baseline(store), loaded, address, as_json=as_json)


# ---------------------------------------------------------------------------------------------- stages


def _create(
    driver: "Driver",
    spec: "SweepSpec",
    plan: "Plan",
    baseline: "BaselineStatistics | None",
    *,
    fresh: bool = False,
) -> "Plan":
    """Make the sweep's directory, or go on with the one that is there; returns what is to be run in all."""
    from orchestrator.growth import grown
    from orchestrator.report.sweep import read_baseline, read_plan, read_spec
    from orchestrator.spec import dump_spec

    store = driver.store
    if not store.exists() or store.hollow():
        known = None if baseline is None else baseline.model_dump(mode="json")
        store.create(dump_spec(spec), plan.to_json(baseline=baseline), known)
        return plan
    sampled = store.has_baseline()
    if fresh and baseline is None and sampled:
        raise UsageError(
            f"{store.url()} has its samples, to which its thresholds and trials refer: --fresh needs another --name"
        )
    there, spec_there = read_plan(store), read_spec(store)
    whole = grown(there, spec_there, plan, spec, place=store.url())
    if (whole, spec) != (there, spec_there):
        known_there = read_baseline(store) if sampled else baseline
        driver.began(len(whole.trials))  # first: what has grown has not ended
        store.redefine(dump_spec(spec), whole.to_json(baseline=known_there))
        if (more := len(whole.trials) - len(there.trials)) or whole.searched > there.searched:
            stderr().print(
                f"{store.name} grows: {more} trials more than the {len(there.trials)} that are there"
                + (f", and up to {whole.searched} that are searched" if whole.searched else ""),
            )
    return whole


def _change(driver: "Driver", overrides: list[str] | None, retry: Retry | None) -> None:
    """Give a sweep what ``resume`` has to say of it."""
    if overrides:
        with_other_resources(driver.store, overrides)
    if retry is not None:
        say(retried(driver, retry))


def _finish(
    driver: "Driver",
    plan: "Plan",
    baseline: "BaselineStatistics | None",
    spec: "SweepSpec",
    address: str | None,
    *,
    as_json: bool,
    consent: "Callable[[list[str]], None]" = lambda _: None,
    preview_first: bool = True,
    fresh: bool = False,
) -> None:
    """Run what is missing, then show and write the frontier."""
    from orchestrator.execution.sweep import RunOptions, run_sweep
    from orchestrator.report.outcome import read_outcome
    from orchestrator.report.sweep import write_frontier

    store = driver.store
    options = RunOptions(spec=spec, address=address, consent=consent, preview=preview_first, fresh=fresh)
    stopped = False
    try:
        run_sweep(plan, driver, baseline, options, stderr())
    except Interrupted:
        stopped = True  # who asked for it waits: what there is can be shown at any time
        raise
    finally:
        if not stopped and driver.lost is None and store.has_baseline():
            driver.flush()
            outcome = read_outcome(store)
            figures = write_frontier(store, outcome.summary)
            page = _report(store, driver.outcome)
        warn_of_files(store)
    if as_json:
        print_json(outcome.to_json())
    else:
        show_outcome(outcome)
        stdout().print(
            f"results: {store.url()}\nfigure: {figures['frontier.svg']}"
            + (f"\nreport: {page}" if page else ""),
            soft_wrap=True,
        )
    if outcome.summary.statuses.get("failed"):
        raise typer.Exit(EXIT_SOME_FAILED)


def _report(store: "SweepStore", outcome: str) -> str | None:
    """Write the report; the results of a sweep are there without it too."""
    from orchestrator.report.page.write import write_report

    try:
        return write_report(store, outcome=outcome).path
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are there and are to be shown
        say(f"warning: no report: {error}")
        return None


def _status(store: "SweepStore") -> dict[str, Any]:
    from orchestrator.report.status import settled_status

    return settled_status(store)


def _consent(hopeless: list[str], *, yes: bool) -> None:
    """Ask before spending on trials that cannot meet their thresholds, if somebody can answer."""
    if hopeless and not yes and sys.stdin.isatty() and not typer.confirm("Run them all the same?", err=True):
        raise UsageError("not started")


# ---------------------------------------------------------------------------------------------- output
