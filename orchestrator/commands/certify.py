"""``cdsweep certify``: how good an adapter is for what it costs, whoever trained it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands.specs import load_asked, refuse_changed
from orchestrator.errors import UsageError
from orchestrator.terminal import (
    AsJson,
    Overrides,
    find_sweep,
    print_json,
    reported,
    stderr,
    stdout,
)

if TYPE_CHECKING:
    from orchestrator.report.certified import Certified
    from orchestrator.results.store import SweepStore
    from trainers.config import TrialConfig


def certify(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER|SWEEP",
            help="A LoRA, whoever wrote it: a directory or file of safetensors, and --spec. Or a sweep, and TRIAL.",
            show_default=False,
        ),
    ],
    trial: Annotated[
        str | None,
        typer.Argument(
            metavar="TRIAL", help="Of the sweep: its id, or the beginning of it.", show_default=False
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="What the adapter is measured by.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=1_000_000,
            help="To draw; by default evaluation.images, and of a trial those of its evaluation.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where sweeps are kept, in place of the spec's.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure rewards and KL of a LoRA, how far it is from its optimum, and the least KL at its rewards."""
    with reported():
        if spec is None and (trial is None or overrides):
            raise UsageError(
                "an adapter is measured by a spec, a trial by that of its sweep: cdsweep certify ADAPTER --spec SPEC "
                "(and --set), or cdsweep certify SWEEP TRIAL"
            )
        if spec is None:
            assert trial is not None
            document, found = _of_trial(find_sweep(subject, storage or "results"), trial, images)
        elif trial is not None:
            raise UsageError(f"--spec goes with an adapter alone: leave out --spec, or {trial!r}")
        else:
            document, found = _of_adapter(subject, spec, overrides, storage, images)
        document |= found.to_json()
        if as_json:
            print_json(document)
        else:
            from orchestrator.report.terminal.tables import certified_table

            stdout().print(certified_table(document))
        for note in found.notes:
            stderr().print(f"note: {note}", soft_wrap=True)


def _of_adapter(
    name: str, spec: str, overrides: list[str] | None, storage: str | None, images: int | None
) -> "tuple[dict[str, Any], Certified]":
    """Measure an adapter by a spec, beside the sweep of that name where there is one."""
    from orchestrator.plan import base_config
    from orchestrator.report.sweep import held_out, read_paths, read_plan, read_spec
    from orchestrator.results.sample_cache import SampleCache, samples_key
    from orchestrator.results.store import SweepStore
    from orchestrator.spec import lora_files

    loaded = load_asked(spec, overrides, None, storage)
    config = base_config(loaded)
    _refuse_others(config, loaded.name)
    files = lora_files(name, config)
    store = SweepStore(loaded.storage, loaded.name)
    beside = store.exists()
    if beside:
        plan = read_plan(store)
        _refuse_other_chain(config, plan.base, store)
        refuse_changed(read_spec(store))
        pretrained, others = read_paths(store, plan)
    else:
        kept, others = SampleCache(loaded.storage).get(samples_key(config)), []
        pretrained = None if kept is None else held_out(kept.table)
    from orchestrator.execution.sampling.measured import certify_adapter

    found = certify_adapter(config, files, images=images, pretrained=pretrained, others=others, say=_say)
    return {"adapter": name, "sweep": store.name if beside else None, "trial_id": None}, found


def _of_trial(store: "SweepStore", written: str, images: int | None) -> "tuple[dict[str, Any], Certified]":
    """Take a trial as it was evaluated, or measure its adapter where that says too little."""
    from orchestrator.execution.sampling.measured import MOST, certify_adapter
    from orchestrator.report.certified import NoOverlapError, certified_trial, fixed_prices
    from orchestrator.report.sweep import read_paths, read_plan, read_spec, read_trial
    from orchestrator.results.catalog import find_trial

    trial_id, plan = find_trial(store, written), read_plan(store)
    config = read_trial(store, plan, trial_id).config
    _refuse_others(config, store.name, trained=True)
    row = store.trial(trial_id)
    if row is None or row["kl"] is None:
        why = "it has not finished" if row is None else f"{row['status']}: {row['error']}"
        raise UsageError(f"trial {trial_id} has nothing to certify ({why})")
    pretrained, others = read_paths(store, plan, without=trial_id)
    beside = [table for table in (pretrained, *others) if table is not None]
    document = {"adapter": store.adapter_url(trial_id), "sweep": store.name, "trial_id": trial_id}
    files, least = store.adapter(trial_id), 0
    if images is None:
        try:
            found = certified_trial(row, store.evaluations(trial_id), config, beside)
        except NoOverlapError as error:
            if not files or error.needed > MOST * config.evaluation.images:
                raise
            found, least = None, error.needed
        if found is not None:
            return document, found
    if not files:
        raise UsageError(
            f"trial {trial_id} has no adapter to draw images from, and its evaluation keeps "
            + ("no log ratios: it is of an earlier version" if images is None else "those that there are")
        )
    if config.method == "frontier":
        raise UsageError(
            f"trial {trial_id} answers many thresholds: cdsweep export {store.name} {trial_id} DIR --at-least "
            "REWARD=VALUE writes one of them, and cdsweep certify DIR --spec SPEC measures it"
        )
    refuse_changed(read_spec(store))
    return document, certify_adapter(
        config,
        files,
        images=images,
        pretrained=pretrained,
        others=others,
        multipliers=fixed_prices(row, config),
        least=least,
        say=_say,
    )


def _say(line: str) -> None:
    stderr().print(line, soft_wrap=True)


def _refuse_others(config: "TrialConfig", name: str, *, trained: bool = False) -> None:
    """Refuse models that no adapter is of."""
    if config.model.composition is not None:
        raise UsageError(f"{name} composes several models, and has no one KL to certify")
    if config.model.mixture is not None and not trained:
        raise UsageError(f"the model of {name} is a mixture, which takes no adapter")


def _refuse_other_chain(ours: "TrialConfig", theirs: "TrialConfig", store: "SweepStore") -> None:
    """Refuse a spec that has another chain, prompts or rewards than the sweep of its name."""
    parts = {"sampling": "sampler settings", "prompts": "prompts", "rewards": "rewards", "model": "model"}
    for key, what in parts.items():
        asked, there = (
            getattr(config, key).model_copy(update={"lora": None}) if key == "model" else getattr(config, key)
            for config in (ours, theirs)
        )
        if asked == there:
            continue
        told = f" ({_changed(asked, there)})" if key == "sampling" else ""
        raise UsageError(
            f"the spec has other {what} than the sweep of its name, {store.url()}{told}, and figures hold for one of "
            "them: give the spec another name with --set name=NAME, or take what the sweep has"
        )


def _changed(asked: Any, there: Any) -> str:
    """Return what differs between two settings."""
    values = there.model_dump(mode="json")
    return ", ".join(
        f"{key} {value}, not {values[key]}"
        for key, value in asked.model_dump(mode="json").items()
        if value != values[key]
    )
