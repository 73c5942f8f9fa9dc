"""What ``cdsweep resume`` can change of a sweep before it goes on: its resources, and which trials are tried again."""

from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.commands.specs import refuse_changed
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.execution.driver import Driver
    from orchestrator.results.store import SweepStore


class Retry(StrEnum):
    """Which trials are run again: those whose row has this status."""

    failed = "failed"
    infeasible = "infeasible"


def with_other_resources(store: "SweepStore", overrides: list[str]) -> None:
    """Write a sweep's plan and spec with other resources.

    Raises:
        UsageError: Something else is to be set, or the workers, by which every optimiser step would be another.
    """
    from orchestrator.growth import with_resources
    from orchestrator.report.sweep import known_baseline, read_plan
    from orchestrator.spec import dump_spec, parse_spec

    for text in overrides:
        key = text.partition("=")[0]
        if key.split(".")[0] != "resources":
            raise UsageError(
                f"--set {text}: resume takes resources.KEY=VALUE alone, whatever else is set makes other trials; "
                "cdsweep run SPEC adds those that a spec has more, or takes another --name"
            )
    spec = parse_spec(store.spec_yaml(), store.url("spec.yaml"), overrides)
    plan = with_resources(read_plan(store), spec, place=store.url())
    store.redefine(dump_spec(spec), plan.to_json(baseline=known_baseline(store)))


def retried(driver: "Driver", retry: Retry) -> str:
    """Forget how trials ended, so that they are run from their beginning; says which.

    Where the code of a package was mended meanwhile, they are run with what it is now, and are other trials.

    Raises:
        UsageError: Models or weights have changed.
    """
    from orchestrator.execution.trials.paths import located
    from orchestrator.growth import mended
    from orchestrator.report.sweep import known_baseline, read_plan, read_spec
    from orchestrator.spec import changes, dump_spec, is_code

    store = driver.store
    rows = store.trials().select(["trial_id", "status"]).to_pylist()
    again = [row["trial_id"] for row in rows if row["status"] == retry]
    if not again:
        return f"no trial is {retry}: nothing is tried again"
    said = f"{len(again)} {retry} trials are tried again: {', '.join(again)}"
    spec, plan = read_spec(store), read_plan(store)
    renewed = changes(spec, located)
    if not all(map(is_code, renewed)):
        refuse_changed(spec)
    driver.began(len(plan.trials))
    if renewed:
        contents = spec.contents | renewed
        spec, plan = spec.model_copy(update={"contents": contents}), mended(plan, again, contents)
        store.redefine(dump_spec(spec), plan.to_json(baseline=known_baseline(store)))
        said += (
            f"\n{', '.join(renewed)} has changed: they have other ids now, and {len(rows) - len(again)} finished "
            "trials keep what it was"
        )
    driver.forgets(again)
    return said
