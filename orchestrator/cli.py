"""The command line: one short command per stage. Everything slow is imported inside its command."""

import json
import sys
from functools import partial
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands import dashboard
from orchestrator.commands.doctor import doctor
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
from orchestrator.errors import UsageError
from orchestrator.results.formats import Format
from orchestrator.terminal import (
    PLOT_WIDTH,
    Address,
    AsJson,
    Budget,
    Floors,
    Fresh,
    Overrides,
    Spec,
    Storage,
    Sweep,
    Trial,
    accept_all_text,
    find_sweep,
    print_json,
    reported,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from orchestrator.plan import Plan
    from orchestrator.report.outcome import Outcome
    from orchestrator.results.store import SweepStore
    from orchestrator.spec import SweepSpec
    from trainers.config import BaselineStatistics

EXIT_SOME_FAILED = 3
PICK = "pick"
"""In place of a trial: the mixture that ``cdsweep pick`` names."""

app = typer.Typer(
    name="cdsweep",
    help="Sweep constraint thresholds of diffusion models; see the trade-off frontier of reward versus KL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(logs)
app.command()(doctor)
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
        loaded = _load(spec, overrides, name, storage, resolved=resolved)
        if resolved:
            _refuse_changed(loaded)
        if not dry_run:
            reach(address)
        plan, baseline, hopeless = _planned(loaded)
        console = stderr()
        _show_plan(plan, baseline, console)
        if dry_run:
            if as_json:
                print_json(plan.to_json(baseline=baseline))
            return
        _consent(hopeless, yes=yes)
        if detach or is_remote(address):
            run_as_job(loaded, address, detach=detach, preview=preview_first, fresh=fresh, as_json=as_json)
            return
        from orchestrator.report.sweep import read_plan

        store = _create(loaded, plan, baseline, fresh=fresh)
        consent = partial(_consent, yes=yes or bool(hopeless))  # asked once is enough
        _finish(
            store,
            read_plan(store),
            baseline,
            loaded,
            address,
            as_json=as_json,
            consent=consent,
            preview_first=preview_first,
            fresh=fresh,
        )


@app.command()
def plan(spec: Spec, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show the trials of SPEC, the resources each needs, and the cost; starts nothing."""
    with reported():
        made, baseline, _ = _planned(_load(spec, overrides))
        if as_json:
            _warn(made, stderr())
            print_json(made.to_json(baseline=baseline))
        else:
            _show_plan(made, baseline, stdout())


@app.command()
def preview(
    spec: Spec,
    overrides: Overrides = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2, help="Of the pretrained model; by default those that run takes.", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where samples are kept, in place of the spec's.", show_default=False
        ),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Where preview.svg and preview.png are written.", show_default=False
        ),
    ] = None,
    fresh: Fresh = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Predict what the thresholds of SPEC cost, from samples of the pretrained model; trains nothing."""
    with reported():
        from orchestrator.execution.sampling.previews import preview_spec
        from orchestrator.plan import make_plan
        from orchestrator.report.terminal.tables import preview_table

        loaded = _load(spec, overrides, None, storage)
        document = preview_spec(
            loaded, make_plan(loaded), samples=samples, address=address, console=stderr(), fresh=fresh
        )
        if figure is not None:
            from orchestrator.report.figures.preview import preview_figure
            from orchestrator.results.export import write_files

            for path in write_files(preview_figure(document), figure):
                stderr().print(path, soft_wrap=True)
        if as_json:
            print_json(document)
        else:
            stdout().print(preview_table(document))


@app.command("list")
def list_(storage: Storage = "results", as_json: AsJson = False) -> None:
    """List the sweeps in a storage."""
    with reported():
        from orchestrator.results.catalog import list_sweeps
        from orchestrator.results.store import SweepStore

        statuses = [_status(SweepStore(storage, name)) for name in list_sweeps(storage)]
        if as_json:
            print_json({"storage": storage, "sweeps": statuses})
            return
        from orchestrator.report.terminal.tables import sweeps_table

        stdout().print(sweeps_table(statuses))


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
        if state != "running":
            raise UsageError(f"{store.url()} is not running: it is {state}")
        store.request_stop()
        stderr().print(
            f"asked {store.name} to stop; running trials keep their last checkpoints", soft_wrap=True
        )


@app.command()
def resume(
    sweep: Sweep,
    storage: Storage = "results",
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Run what is missing of a sweep; finished trials are kept, interrupted ones go on from their checkpoints."""
    with reported():
        from orchestrator.report.sweep import read_baseline, read_plan, read_spec

        reach(address)
        store = find_sweep(sweep, storage)
        loaded = read_spec(store)
        if detach or is_remote(address):
            _refuse_running(store)
            loaded = loaded.model_copy(update={"storage": store.storage, "name": store.name})
            run_as_job(loaded, address, detach=detach, as_json=as_json)
            return
        _refuse_changed(loaded)
        baseline = read_baseline(store) if store.has_baseline() else None
        _finish(store, read_plan(store), baseline, loaded, address, as_json=as_json)


@app.command()
def frontier(
    sweeps: Annotated[
        list[str],
        typer.Argument(metavar="SWEEP...", help="Names or directories of sweeps.", show_default=False),
    ],
    storage: Storage = "results",
    plot: Annotated[
        bool | None,
        typer.Option(
            "--plot/--no-plot", help="Draw it in characters; by default on a terminal.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the trade-off frontier of finished trials."""
    with reported():
        from orchestrator.report.outcome import read_outcome

        stores = [find_sweep(sweep, storage) for sweep in sweeps]
        outcomes = [read_outcome(store) for store in stores]
        for store in stores:
            _warn_of_files(store)
        if as_json:
            documents = [outcome.to_json() for outcome in outcomes]
            print_json(documents[0] if len(documents) == 1 else {"sweeps": documents})
            return
        for outcome in outcomes:
            _show_outcome(outcome, plot=sys.stdout.isatty() if plot is None else plot)


@app.command()
def report(
    sweep: Sweep,
    storage: Storage = "results",
    figures: Annotated[
        bool, typer.Option("--figures/--no-figures", help="Write SVG and PNG figures beside it.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML file with the frontier, images and training curves, and figures for print."""
    with reported():
        from orchestrator.report.page.write import write_figures, write_report

        store = find_sweep(sweep, storage)
        written = write_report(store)
        paths = write_figures(store) if figures else []
        for problem in written.document["problems"]:
            stderr().print(f"warning: {problem}", soft_wrap=True)
        if as_json:
            print_json(
                {
                    "sweep": store.name,
                    "report": written.path,
                    "bytes": written.size,
                    "figures": paths,
                    "problems": written.document["problems"],
                }
            )
            return
        for path in (written.path, *paths):
            stdout().print(path, soft_wrap=True)


@app.command()
def pick(
    sweep: Sweep,
    at_least: Floors = None,
    kl_at_most: Budget = None,
    single: Annotated[bool, typer.Option("--single", help="One trial, no mixture.")] = False,
    storage: Storage = "results",
    as_json: AsJson = False,
) -> None:
    """Pick the finished trial, or mixture of trials, that meets thresholds at the least KL."""
    with reported():
        from orchestrator.report.terminal.tables import picked_table

        found = _picked(find_sweep(sweep, storage), at_least, kl_at_most, mix=not single)
        if as_json:
            print_json(found)
        else:
            stdout().print(picked_table(found))


@app.command()
def export(
    sweep: Sweep,
    trial: Trial,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where it goes.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="Names of the tensors; ComfyUI takes those of kohya.")
    ] = Format.diffusers,
    at_least: Floors = None,
    kl_at_most: Budget = None,
    storage: Storage = "results",
    as_json: AsJson = False,
) -> None:
    """Write the adapter of a trial as a LoRA for diffusers, or for ComfyUI and kohya's scripts, with its model card.

    With 'pick' for TRIAL and the options of pick: every adapter of the mixture, and an index with their probabilities.
    """
    with reported():
        from orchestrator.results.export import exported, write_adapter

        store = find_sweep(sweep, storage)
        if trial == PICK:
            from orchestrator.results.mixture_export import mixture_files

            found = _picked(store, at_least, kl_at_most, mix=True)
            paths = write_adapter(mixture_files(found, _members(store, found), form), directory)
            trial_id = PICK
        else:
            trial_id = _trial_id(store, trial)
            paths = write_adapter(exported(_adapter(store, trial_id), form), directory)
        if as_json:
            print_json({"sweep": store.name, "trial_id": trial_id, "files": paths})
            return
        for path in paths:
            stdout().print(path, soft_wrap=True)


@app.command()
def sample(
    sweep: Sweep,
    trial: Trial,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Repeatable; by default the held-out prompts.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Images; prompts take turns.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the others follow.")] = 0,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="By default samples/TRIAL in the sweep.", show_default=False),
    ] = None,
    at_least: Floors = None,
    kl_at_most: Budget = None,
    storage: Storage = "results",
    as_json: AsJson = False,
) -> None:
    """Draw images from a trial, and from the pretrained model at the same seeds.

    With 'pick' for TRIAL and the options of pick: from the mixture, a member drawn for every image.
    """
    with reported():
        from dataclasses import asdict
        from pathlib import Path

        from orchestrator.report.sweep import read_plan, read_spec

        store = find_sweep(sweep, storage)
        mixture = _picked(store, at_least, kl_at_most, mix=True) if trial == PICK else None
        trial_id = PICK if mixture else _trial_id(store, trial)
        if out is None and "://" in store.url():
            raise UsageError(f"{store.url()} is not on this machine: say where images go with --out DIR")
        directory = Path(out or store.url(f"samples/{trial_id}"))
        adapters = {trial_id: _adapter(store, trial_id)} if mixture is None else _members(store, mixture)
        shares = {trial_id: 1.0}
        if mixture is not None:
            shares = {member["trial_id"]: member["probability"] for member in mixture["mixture"]}
        config = next(t.config for t in read_plan(store).trials if mixture or t.trial_id == trial_id)
        if config.model.mixture is not None:
            raise UsageError(f"the model of {store.name} is a mixture, which has no images to sample")
        _refuse_changed(read_spec(store))
        from orchestrator.execution.sampling.samples import sample_trial

        rows = sample_trial(config, adapters, shares, directory, prompts=prompt or (), seed=seed, count=count)
        grid = str(directory / "grid.png")
        if as_json:
            print_json(
                {
                    "sweep": store.name,
                    "trial_id": trial_id,
                    "images": [asdict(row) for row in rows],
                    "grid": grid,
                }
            )
            return
        stdout().print(
            f"{len(rows)} images of the trial and of the pretrained model in {directory}\nside by side, pretrained "
            f"above: {grid}",
            soft_wrap=True,
        )


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    with reported():
        from orchestrator.spec import json_schema

        print_json(json_schema())


# ---------------------------------------------------------------------------------------------- stages


def _load(
    source: str,
    overrides: list[str] | None,
    name: str | None = None,
    storage: str | None = None,
    *,
    resolved: bool = False,
) -> "SweepSpec":
    from orchestrator.spec import load_spec

    chosen = {"name": name, "storage": storage}
    extra = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    return load_spec(source, [*(overrides or []), *extra], resolved=resolved)


def _planned(spec: "SweepSpec") -> "tuple[Plan, BaselineStatistics | None, list[str]]":
    """Plan; where the model is exact, its statistics are too, and hopeless thresholds are known."""
    from orchestrator.frontier.problems import exact_baseline, exact_solver
    from orchestrator.plan import base_config, make_plan, resolve_thresholds
    from orchestrator.report.reach import unreachable

    made = make_plan(spec)
    config = base_config(spec)
    baseline = exact_baseline(config)
    if baseline is not None:
        resolve_thresholds(config, baseline)  # of a search no trial is planned that would be refused
    exact = exact_solver(config) if config.constraints else None
    if baseline is None or exact is None:
        return made, baseline, []
    hopeless = unreachable(made, baseline, exact)
    return made.model_copy(update={"warnings": (*made.warnings, *hopeless)}), baseline, hopeless


def _create(
    spec: "SweepSpec", plan: "Plan", baseline: "BaselineStatistics | None", *, fresh: bool = False
) -> "SweepStore":
    """Make the sweep's directory, or open it where the same sweep is there already."""
    from orchestrator.results.store import SweepStore
    from orchestrator.spec import dump_spec

    store = SweepStore(spec.storage, spec.name)
    if store.exists():
        _refuse_running(store)
        if fresh and baseline is None and store.has_baseline():
            raise UsageError(
                f"{store.url()} has its samples, to which its thresholds and trials refer: --fresh needs another --name"
            )
    known = None if baseline is None else baseline.model_dump(mode="json")
    store.create(dump_spec(spec), plan.to_json(baseline=baseline), known)
    return store


def _finish(
    store: "SweepStore",
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

    _refuse_running(store)
    options = RunOptions(spec=spec, address=address, consent=consent, preview=preview_first, fresh=fresh)
    try:
        run_sweep(plan, store, baseline, options, stderr())
    finally:
        if store.has_baseline():
            store.pack()  # first: what follows reads every row
            outcome = read_outcome(store)
            figures = write_frontier(store, outcome.summary)
            page = _report(store)
        _warn_of_files(store)
    if as_json:
        print_json(outcome.to_json())
    else:
        _show_outcome(outcome)
        stdout().print(
            f"results: {store.url()}\nfigure: {figures['frontier.svg']}"
            + (f"\nreport: {page}" if page else ""),
            soft_wrap=True,
        )
    if outcome.summary.statuses.get("failed"):
        raise typer.Exit(EXIT_SOME_FAILED)


def _report(store: "SweepStore") -> str | None:
    """Write the report; the results of a sweep are there without it too."""
    from orchestrator.report.page.write import write_report

    try:
        return write_report(store).path
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are there and are to be shown
        stderr().print(f"warning: no report: {error}", soft_wrap=True)
        return None


def _refuse_running(store: "SweepStore") -> None:
    state = _status(store)
    if state["state"] == "running":
        raise UsageError(
            f"{store.url()} is running already (process {state['driver']}); `cdsweep stop {store.url()}` stops it"
        )


def _refuse_changed(spec: "SweepSpec") -> None:
    """Refuse to go on with a sweep whose pipelines, weights or packages are no longer those that it began with."""
    from orchestrator.execution.trials.paths import located
    from orchestrator.spec import changes

    if found := changes(spec, located):
        raise UsageError(
            f"{spec.name} was planned with other contents:\n"
            + "".join(f"  {line}\n" for line in found)
            + "put them back, or run the spec under another --name: its trials are then others"
        )


def _picked(
    store: "SweepStore", at_least: list[str] | None, kl_at_most: float | None, *, mix: bool
) -> dict[str, Any]:
    """Return the document of ``cdsweep pick``."""
    from orchestrator.report.picked import picked
    from orchestrator.report.sweep import pretrained_rewards, read_baseline, read_plan, read_trials

    thresholds: dict[str, float] = {}
    for written in at_least or []:
        name, sign, value = written.partition("=")
        try:
            bound = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(f"--at-least takes REWARD=VALUE, such as saturation=0.6, got {written!r}")
        if name in thresholds:
            raise UsageError(
                f"--at-least names the reward {name!r} twice, the second time as {written!r}: give one"
            )
        thresholds[name] = bound
    trials, baseline = read_trials(store, read_plan(store)), read_baseline(store)
    if trials.config.model.composition is not None:
        raise UsageError("a composition has no KL to a pretrained model to pick by")
    found = picked(
        trials,
        baseline,
        pretrained_rewards(store, baseline),
        at_least=thresholds,
        kl_at_most=kl_at_most,
        mix=mix,
    )
    return found.to_json()


def _trial_id(store: "SweepStore", written: str) -> str:
    from orchestrator.results.catalog import find_trial

    return find_trial(store, written)


def _adapter(store: "SweepStore", trial_id: str) -> dict[str, bytes]:
    """Return the files of a trial's adapter."""
    files = store.adapter(trial_id)
    if not files:
        raise UsageError(
            f"trial {trial_id} has no adapter: it has not finished, failed, its model is a mixture, or it composes "
            "models without distillation"
        )
    return files


def _members(store: "SweepStore", found: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """Return the adapters of a mixture's members by trial id."""
    from orchestrator.report.picked import PRETRAINED

    ids = [member["trial_id"] for member in found["mixture"]]
    return {trial_id: _adapter(store, trial_id) for trial_id in ids if trial_id != PRETRAINED}


def _status(store: "SweepStore") -> dict[str, Any]:
    from orchestrator.report.status import status_document

    return status_document(store)


def _consent(hopeless: list[str], *, yes: bool) -> None:
    """Ask before spending on trials that cannot meet their thresholds, if somebody can answer."""
    if hopeless and not yes and sys.stdin.isatty() and not typer.confirm("Run them all the same?", err=True):
        raise UsageError("not started")


# ---------------------------------------------------------------------------------------------- output


def _show_plan(plan: "Plan", baseline: "BaselineStatistics | None", console: "Console") -> None:
    from orchestrator.report.terminal.tables import plan_table

    console.print(plan_table(plan.to_json(baseline=baseline)))
    _warn(plan, console)


def _show_outcome(outcome: "Outcome", *, plot: bool = False) -> None:
    from orchestrator.report.terminal.outcome_tables import outcome_tables
    from orchestrator.report.terminal.plot import frontier_plot
    from orchestrator.report.terminal.tables import summary_tables

    if plot:
        width = stdout().width if sys.stdout.isatty() else PLOT_WIDTH
        for name in outcome.summary.sought:
            stdout().print(frontier_plot(outcome.summary, name, width))

    stdout().print(summary_tables(outcome.summary), *outcome_tables(outcome), sep="\n")


def _warn(plan: "Plan", console: "Console") -> None:
    for warning in plan.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)


def _warn_of_files(store: "SweepStore") -> None:
    for problem in store.problems:
        stderr().print(f"warning: {problem}", soft_wrap=True)
