"""``cdsweep pick``, ``export`` and ``sample``: a trial or a mixture of trials, its adapters, its images."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands.specs import refuse_changed
from orchestrator.errors import UsageError
from orchestrator.results.formats import Format
from orchestrator.terminal import (
    AsJson,
    Budget,
    Floors,
    Storage,
    Sweep,
    Trial,
    find_sweep,
    print_json,
    reported,
    stdout,
)

if TYPE_CHECKING:
    from orchestrator.results.store import SweepStore

PICK = "pick"
"""In place of a trial: the mixture that ``cdsweep pick`` names."""


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
        refuse_changed(read_spec(store))
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


def _picked(
    store: "SweepStore", at_least: list[str] | None, kl_at_most: float | None, *, mix: bool
) -> dict[str, Any]:
    """Return the document of ``cdsweep pick``."""
    from orchestrator.report.picked import picked
    from orchestrator.report.sweep import (
        pretrained_rewards,
        read_baseline,
        read_plan,
        read_solver,
        read_trials,
    )

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
        least=read_solver(store, trials.config, baseline, trials),
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
    from orchestrator.frontier.sampled import PRETRAINED

    ids = [member["trial_id"] for member in found["mixture"]]
    return {trial_id: _adapter(store, trial_id) for trial_id in ids if trial_id != PRETRAINED}
