"""``cdsweep plan``, ``preview`` and ``schema``, which need a spec and no sweep; how a spec is loaded and planned."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import UsageError
from orchestrator.terminal import (
    Address,
    AsJson,
    Fresh,
    Overrides,
    Spec,
    print_json,
    reported,
    say,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from orchestrator.plan import Plan
    from orchestrator.spec import SweepSpec
    from trainers.config import BaselineStatistics


def plan(
    spec: Spec,
    overrides: Overrides = None,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Tell what a worker takes of it, too; imports torch, which takes a while."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the trials of SPEC, the resources each needs, and the cost; starts nothing."""
    with reported():
        loaded = load_asked(spec, overrides)
        made, baseline, _ = planned(loaded)
        if as_json:
            _warn(made, stderr())
            print_json(made.to_json(baseline=baseline) | ({"memory": _memory(loaded)} if memory else {}))
            return
        show_plan(made, baseline, stdout())
        if memory:
            for line in memory_lines(_memory(loaded)):
                stdout().print(line, soft_wrap=True)


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

        loaded = load_asked(spec, overrides, None, storage)
        document = preview_spec(
            loaded, make_plan(loaded), samples=samples, address=address, console=stderr(), fresh=fresh
        )
        if figure is not None:
            from orchestrator.report.figures.preview import preview_figure
            from orchestrator.results.export import write_files

            for path in write_files(preview_figure(document), figure):
                say(path)
        if as_json:
            print_json(document)
        else:
            stdout().print(preview_table(document))


def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    with reported():
        from orchestrator.spec import json_schema

        print_json(json_schema())


def load_asked(
    source: str,
    overrides: list[str] | None,
    name: str | None = None,
    storage: str | None = None,
    *,
    resolved: bool = False,
) -> "SweepSpec":
    """Return a spec with what the command line changes in it.

    Raises:
        SpecError: It is not valid.
        StorageError: Its storage holds credentials.
    """
    from orchestrator.results.files.addresses import refuse_secrets
    from orchestrator.spec import load_spec

    chosen = {"name": name, "storage": storage}
    extra = [f"{key}={json.dumps(value)}" for key, value in chosen.items() if value is not None]
    spec = load_spec(source, [*(overrides or []), *extra], resolved=resolved)
    refuse_secrets(spec.storage)
    return spec


def planned(spec: "SweepSpec") -> "tuple[Plan, BaselineStatistics | None, list[str]]":
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


def _memory(spec: "SweepSpec") -> "dict[str, Any] | None":
    from orchestrator.doctor.memory import memory_document, memory_of

    estimate = memory_of(spec)
    return None if estimate is None else memory_document(estimate, gpu=spec.resources.gpus_per_worker > 0)


def memory_lines(document: "dict[str, Any] | None") -> "Iterator[str]":
    """Yield what ``plan --memory`` says of a worker of a trial."""
    if document is None:
        yield "memory: not told, as no adapter of one pipeline is trained, or its configuration is not here"
        return
    parts = {key: document[key] / 2**30 for key in ("peak", "weights", "training", "evaluation")}
    yield (
        "memory: {peak:.1f} GiB for a worker at most: {weights:.1f} of weights, besides {training:.1f} in training, "
        "{evaluation:.1f} in evaluations".format(**parts)
    )
    if document["unsplit"] > 0:
        more = document["unsplit"] / 2**30
        yield f"memory: weights are {more:.1f} GiB more where single workers sample the pretrained model"
    if document["card_gb"] is not None:
        yield f"memory: fits a card of {document['card_gb']} GB"


def refuse_changed(spec: "SweepSpec") -> None:
    """Refuse to go on with a sweep whose pipelines, weights or packages are no longer those that it began with."""
    from orchestrator.execution.trials.paths import located
    from orchestrator.spec import changes, told

    if found := changes(spec, located):
        raise UsageError(
            f"{spec.name} was planned with other contents:\n"
            + "".join(f"  {line}\n" for line in told(spec, found))
            + "put them back, or run the spec under another --name: its trials are then others; trials that failed "
            "before a package was mended are run again by cdsweep resume --retry failed"
        )


def show_plan(plan: "Plan", baseline: "BaselineStatistics | None", console: "Console") -> None:
    """Print a plan with its warnings."""
    from orchestrator.report.terminal.tables import plan_table

    console.print(plan_table(plan.to_json(baseline=baseline)))
    _warn(plan, console)


def _warn(plan: "Plan", console: "Console") -> None:
    for warning in plan.warnings:
        console.print(f"warning: {warning}", soft_wrap=True)
