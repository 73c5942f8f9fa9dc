"""``cdsweep doctor``: whether a sweep can run here, and what to do where it cannot."""

from typing import Annotated

import typer

from orchestrator.terminal import Address, AsJson, Overrides, print_json, reported, stdout


def doctor(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="A sweep that is to run.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where results are to go: the spec's, or results.", show_default=False
        ),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, Ray, GPUs, storage, disk, weights and limits; says how to mend what fails."""
    with reported():
        from orchestrator.doctor.examine import examine
        from orchestrator.doctor.finding import Patient
        from orchestrator.doctor.report import document, table
        from orchestrator.spec import load_spec

        loaded = None if spec is None else load_spec(spec, overrides or [])
        place = storage or (loaded.storage if loaded else "results")
        findings = list(examine(Patient(spec=loaded, address=address, storage=place)))
        if as_json:
            print_json(document(findings))
        else:
            stdout().print(table(findings))
        if any(finding.status == "fail" for finding in findings):
            raise typer.Exit(1)
