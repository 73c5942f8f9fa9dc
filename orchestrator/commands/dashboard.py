"""The commands of ``cdsweep dashboard``: what Ray's dashboard, Prometheus and Grafana are given."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.terminal import AsJson, print_json, reported, say, stdout

app = typer.Typer(help="Put sweeps into Ray's dashboard, Prometheus and Grafana.", no_args_is_help=True)


@app.command()
def enable(as_json: AsJson = False) -> None:
    """Print the line that puts the cdsweep page into Ray's dashboard: eval "$(cdsweep dashboard enable)".

    Ray that is started afterwards from the same shell, by ray start --head or by cdsweep run, has the page.
    """
    with reported():
        from orchestrator.report.dashboard.enable import search_path

        path = search_path(os.environ.get("PYTHONPATH", ""))
        if as_json:
            print_json({"PYTHONPATH": path})
        else:
            typer.echo(f"export PYTHONPATH={shlex.quote(path)}")


@app.command()
def files(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where they go.", show_default=False)],
    ray_directory: Annotated[
        str, typer.Option("--ray-directory", metavar="DIR", help="Ray's temporary directory on the head.")
    ] = "/tmp/ray",  # noqa: S108 - Ray's own
    scrape_seconds: Annotated[
        float, typer.Option(min=1.0, max=300.0, help="Between two looks of Prometheus.")
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Write the configuration and rules of Prometheus, and the Grafana dashboard of running sweeps."""
    with reported():
        from orchestrator.report.dashboard.files import DASHBOARDS, write_files
        from orchestrator.report.dashboard.grafana import UID

        written = [
            str(path)
            for path in write_files(directory, ray_directory=ray_directory, scrape_seconds=scrape_seconds)
        ]
        environment = {
            "RAY_METRICS_GRAFANA_DASHBOARD_OUTPUT_DIR": str((directory / DASHBOARDS).absolute()),
            "RAY_GRAFANA_DATA_DASHBOARD_UID": UID,
        }
        if as_json:
            print_json({"files": written, "environment": environment})
            return
        console = stdout()
        for path in written:
            console.print(path, soft_wrap=True)
        say("for the head node, before `ray start`:")
        for name, value in environment.items():
            console.print(f"export {name}={shlex.quote(value)}", soft_wrap=True)
