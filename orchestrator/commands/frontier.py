"""``cdsweep frontier`` and ``cdsweep report``: what has finished, in the terminal and as a page."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.terminal import (
    PLOT_WIDTH,
    AsJson,
    Storage,
    Sweep,
    find_sweep,
    print_json,
    reported,
    say,
    stdout,
)

if TYPE_CHECKING:
    from orchestrator.report.outcome import Outcome
    from orchestrator.results.store import SweepStore


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
    """Show the trade-off frontier of finished trials; of several sweeps also what the same setting took in each."""
    with reported():
        from orchestrator.report.compared import compared
        from orchestrator.report.outcome import read_outcome

        stores = [find_sweep(sweep, storage) for sweep in sweeps]
        outcomes = [read_outcome(store) for store in stores]
        for store in stores:
            warn_of_files(store)
        names = [store.name for store in stores]
        if len(set(names)) < len(names):  # in other storages
            names = [store.url() for store in stores]
        rows = compared(list(zip(names, outcomes, strict=True)))
        if as_json:
            documents = [outcome.to_json() for outcome in outcomes]
            beside = [row.to_json() for row in rows]
            print_json(documents[0] if len(documents) == 1 else {"sweeps": documents, "compared": beside})
            return
        for outcome in outcomes:
            show_outcome(outcome, plot=sys.stdout.isatty() if plot is None else plot)
        if len(stores) > 1:
            from orchestrator.report.terminal.outcome_tables import compared_table

            stdout().print(compared_table(rows))


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
            say(f"warning: {problem}")
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


def show_outcome(outcome: "Outcome", *, plot: bool = False) -> None:
    """Print the frontier of a sweep and what the analysis found."""
    from orchestrator.report.terminal.outcome_tables import outcome_tables
    from orchestrator.report.terminal.plot import frontier_plot
    from orchestrator.report.terminal.tables import summary_tables

    if plot:
        width = stdout().width if sys.stdout.isatty() else PLOT_WIDTH
        for name in outcome.summary.sought:
            stdout().print(frontier_plot(outcome.summary, name, width))

    stdout().print(
        summary_tables(outcome.summary, outcome.judges, outcome.apart), *outcome_tables(outcome), sep="\n"
    )


def warn_of_files(store: "SweepStore") -> None:
    """Warn of files that could not be read."""
    for problem in store.problems:
        say(f"warning: {problem}")
