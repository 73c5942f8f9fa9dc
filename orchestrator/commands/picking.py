"""``cdsweep pick``, ``export`` and ``sample``: a trial or a mixture of trials, its adapters, its images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.commands.composed_picking import picked_composed, picked_files, weighed_by
from orchestrator.commands.grids import say_measured, write_grid
from orchestrator.commands.specs import refuse_changed
from orchestrator.errors import UsageError
from orchestrator.results.formats import Format
from orchestrator.terminal import (
    AsJson,
    Budget,
    Floors,
    Prices,
    Storage,
    Sweep,
    Trial,
    find_sweep,
    numbers,
    print_json,
    reported,
    say,
    stdout,
)
from trainers.adapters.files import FRONTIER_LORA, MULTIPLIERS

if TYPE_CHECKING:
    from orchestrator.execution.sampling.between import Between
    from orchestrator.execution.sampling.replies import Replied
    from orchestrator.execution.sampling.weighed import Weighed
    from orchestrator.plan import Plan
    from orchestrator.results.store import SweepStore
    from trainers.pipelines.families import Family

PICK = "pick"
"""In place of a trial: the mixture that ``cdsweep pick`` names."""


def pick(
    sweep: Sweep,
    at_least: Floors = None,
    kl_at_most: Budget = None,
    multiplier: Prices = None,
    single: Annotated[bool, typer.Option("--single", help="One trial, no mixture.")] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure an adapter between finished trials, which counts as a finished point from then on.",
        ),
    ] = False,
    storage: Storage = "results",
    as_json: AsJson = False,
) -> None:
    """Pick the finished trial, or mixture of trials, that meets thresholds at the least KL.

    Of a composition: the adapter whose farthest model is nearest, or with --multiplier the one at these weights.
    """
    with reported():
        store = find_sweep(sweep, storage)
        if (plan := _composed(store)) is not None:
            from orchestrator.report.terminal.outcome_tables import composed_adapters_table

            others = _others(at_least, kl_at_most) | {"--single": single, "--measure": measure}
            found, _ = picked_composed(store, plan, multiplier, others)
            table = composed_adapters_table(found)
        else:
            from orchestrator.report.terminal.tables import picked_table

            if multiplier:
                raise UsageError(
                    "--multiplier goes with pick of a composition, and with export and sample of a trial of the method "
                    "frontier: pick finds the multipliers of thresholds"
                )
            found = _picked(store, at_least, kl_at_most, mix=not single, measure=measure)
            table = picked_table(found)
        if as_json:
            print_json(found)
        else:
            stdout().print(table)


def export(
    sweep: Sweep,
    trial: Trial,
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Where it goes.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="Names of the tensors; ComfyUI takes those of kohya.")
    ] = Format.diffusers,
    at_least: Floors = None,
    kl_at_most: Budget = None,
    multiplier: Prices = None,
    grid: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=256,
            help="Of a trial of the method frontier: at so many values of every threshold that moves, or of every "
            "weight.",
            show_default=False,
        ),
    ] = None,
    storage: Storage = "results",
    as_json: AsJson = False,
) -> None:
    """Write the adapter of a trial as a LoRA for diffusers, or for ComfyUI and kohya's scripts, with its model card.

    With 'pick' for TRIAL and the options of pick: every adapter of the mixture, and an index with their probabilities.
    A trial of the method frontier takes --at-least, or --multiplier: what it is at that point, measured; or --grid: the
    same at many, with an index. That of a composition takes --multiplier or --grid.
    """
    with reported():
        from orchestrator.results.export import exported, write_adapter

        store = find_sweep(sweep, storage)
        if grid is not None:
            if trial == PICK or at_least or multiplier or kl_at_most is not None:
                raise UsageError(
                    "--grid goes with a trial of the method frontier alone: leave out the other options"
                )
            trial_id = _trial_id(store, trial)
            paths = write_grid(store, trial_id, grid, form, directory, _family(store))
        elif trial == PICK and (plan := _composed(store)) is not None:
            trial_id, files = picked_files(store, plan, multiplier, _others(at_least, kl_at_most))
            paths = write_adapter(exported(files, form, _family(store)), directory)
        elif trial == PICK:
            from orchestrator.results.mixture_export import mixture_files

            if multiplier:
                raise UsageError("--multiplier goes with a trial of the method frontier, not with pick")
            picked = _picked(store, at_least, kl_at_most, mix=True)
            paths = write_adapter(
                mixture_files(picked, _members(store, picked), form, _family(store)), directory
            )
            trial_id = PICK
        else:
            trial_id = _trial_id(store, trial)
            found = _replied(store, trial_id, at_least, kl_at_most, multiplier)
            files = _adapter(store, trial_id) if found is None else found.files()
            paths = write_adapter(exported(files, form, _family(store)), directory)
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
    multiplier: Prices = None,
    storage: Storage = "results",
    as_json: AsJson = False,
) -> None:
    """Draw images from a trial, and from the pretrained model at the same seeds.

    With 'pick' for TRIAL and the options of pick: from the mixture, a member drawn for every image. A trial of the
    method frontier takes --at-least or --multiplier. Of an exact mixture: a table of samples.
    """
    with reported():
        from dataclasses import asdict
        from pathlib import Path

        from orchestrator.report.sweep import read_plan, read_spec, read_trial

        store = find_sweep(sweep, storage)
        if out is None and "://" in store.url():
            raise UsageError(f"{store.url()} is not on this machine: say where images go with --out DIR")
        drawn = _drawn(store, trial, at_least, kl_at_most, multiplier)
        trial_id, adapters, shares, mixture = drawn.trial_id, drawn.adapters, drawn.shares, drawn.mixture
        directory = Path(out or store.url(f"samples/{trial_id}"))
        plan = read_plan(store)
        # A mixture is of the members' model, and of their rank where one is alone.
        first = next((t.config for t in plan.trials if t.trial_id in shares), plan.trials[0].config)
        config = first if mixture else read_trial(store, plan, trial_id).config
        if config.model.mixture is not None:
            from orchestrator.execution.sampling.points import sample_points

            if prompt:
                raise UsageError(f"the model of {store.name} is a mixture, which takes no --prompt")
            path = sample_points(config, adapters, shares, directory, seed=seed, count=count)
            if as_json:
                print_json({"sweep": store.name, "trial_id": trial_id, "samples": count, "file": path})
            else:
                stdout().print(
                    f"{count} samples of the trial and of the mixture itself: {path}", soft_wrap=True
                )
            return
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


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What images are drawn from."""

    trial_id: str
    adapters: dict[str, dict[str, bytes]]
    """Files by trial."""
    shares: dict[str, float]
    """Probability of each; of the pretrained model too, which has no files."""
    mixture: bool = False


def _drawn(
    store: "SweepStore",
    trial: str,
    at_least: list[str] | None,
    kl_at_most: float | None,
    multiplier: list[str] | None,
) -> _Drawn:
    """Return what ``cdsweep sample`` is asked to draw from."""
    plan = _composed(store)
    if trial == PICK and plan is None:
        if multiplier:
            raise UsageError("--multiplier goes with a trial of the method frontier, not with pick")
        picked = _picked(store, at_least, kl_at_most, mix=True)
        shares = {member["trial_id"]: member["probability"] for member in picked["mixture"]}
        return _Drawn(trial_id=PICK, adapters=_members(store, picked), shares=shares, mixture=True)
    if trial == PICK and plan is not None:
        trial_id, files = picked_files(store, plan, multiplier, _others(at_least, kl_at_most))
    else:
        trial_id = _trial_id(store, trial)
        replied = _replied(store, trial_id, at_least, kl_at_most, multiplier)
        files = _adapter(store, trial_id) if replied is None else replied.files()
    if MULTIPLIERS in files or FRONTIER_LORA in files:
        asked = "many thresholds: say which, with --at-least REWARD=VALUE"
        if plan is not None:
            asked = "all weights of its models: say which, with --multiplier MODEL=WEIGHT"
        raise UsageError(f"trial {trial_id} answers {asked}")
    return _Drawn(trial_id=trial_id, adapters={trial_id: files}, shares={trial_id: 1.0})


def _composed(store: "SweepStore") -> "Plan | None":
    """Return the plan of a sweep that composes models; None of any other."""
    from orchestrator.report.sweep import read_plan

    plan = read_plan(store)
    return None if plan.base.model.composition is None else plan


def _others(at_least: list[str] | None, kl_at_most: float | None) -> dict[str, object]:
    """Return the options of thresholds, by name, with whether they are given."""
    return {"--at-least": at_least, "--kl-at-most": kl_at_most is not None}


def _picked(
    store: "SweepStore",
    at_least: list[str] | None,
    kl_at_most: float | None,
    *,
    mix: bool,
    measure: bool = False,
) -> dict[str, Any]:
    """Return the document of ``cdsweep pick``."""
    from orchestrator.report.picked import picked
    from orchestrator.report.sweep import (
        pretrained_rewards,
        read_baseline,
        read_plan,
        read_points,
        read_solver,
        read_trials,
    )

    thresholds = numbers(at_least, "--at-least", "REWARD=VALUE, such as saturation=0.6", "reward")
    plan, baseline = read_plan(store), read_baseline(store)
    trials = read_trials(store, plan)
    looked = None
    if measure:
        looked = _measured(store, plan, thresholds, kl_at_most, tuple(trials.rewards))
        trials = read_trials(store, plan)
    answers, refused = [], []
    if thresholds and set(thresholds) <= set(trials.rewards) and len(trials.of_method("frontier")):
        from orchestrator.execution.sampling.replies import of_sweep

        say_measured(trials.config, "these thresholds")
        for found in of_sweep(store, plan, thresholds):
            if isinstance(found, UsageError):
                refused.append(found)
            else:
                answers.append(found.measured(tuple(trials.rewards)))
    if kl_at_most is not None and len(trials.of_method("frontier")):
        from orchestrator.execution.sampling.replies import stored_answers

        answers += stored_answers(store, plan, tuple(trials.rewards))
    try:
        document = picked(
            trials,
            baseline,
            pretrained_rewards(store, baseline),
            at_least=thresholds,
            kl_at_most=kl_at_most,
            mix=mix,
            least=read_solver(store, trials.config, baseline, trials),
            answers=answers,
        ).to_json()
    except UsageError as error:
        raise UsageError("\n".join(map(str, refused))) if refused else error from None
    parts = {point.trial_id: point.config.interpolated for point in read_points(store, plan)}
    for member in document["mixture"]:
        if member["trial_id"] in parts:
            member["interpolated"] = parts[member["trial_id"]]
    if looked is not None:
        document |= {"looked": list(looked.looked), "measured": list(looked.measured), "held": looked.held}
    return document


def _measured(
    store: "SweepStore",
    plan: "Plan",
    thresholds: dict[str, float],
    kl_at_most: float | None,
    rewards: tuple[str, ...],
) -> "Between":
    """Measure what lies between the trials of a sweep at thresholds."""
    from orchestrator.execution.sampling.between import measure_between
    from orchestrator.report.picked import check_rewards
    from orchestrator.report.sweep import read_spec

    if not thresholds or kl_at_most is not None:
        raise UsageError("--measure goes with --at-least REWARD=VALUE, and without --kl-at-most")
    check_rewards(thresholds, rewards)
    refuse_changed(read_spec(store))
    found = measure_between(store, plan, thresholds, say)
    if not found.held:
        say(
            "no interpolated adapter holds this at 95 % confidence"
            if found.looked
            else "there is nothing to interpolate: a trial as it is, or no mixture of them, is what comes nearest"
        )
    return found


def _replied(
    store: "SweepStore",
    trial_id: str,
    at_least: list[str] | None,
    kl_at_most: float | None,
    multiplier: list[str] | None,
) -> "Replied | Weighed | None":
    """Return what a trial answers to the options; None where there are none."""
    from orchestrator.report.sweep import read_plan, read_trial

    if not at_least and not multiplier and kl_at_most is None:
        return None
    plan = read_plan(store)
    trial = read_trial(store, plan, trial_id)
    if trial.config.model.composition is not None:
        return weighed_by(store, plan, trial, multiplier, _others(at_least, kl_at_most))
    if trial.config.method != "frontier":
        raise UsageError(
            f"trial {trial_id} has thresholds that stand still ({trial.config.method}): --at-least, --kl-at-most and "
            "--multiplier go with 'pick', or with a trial of the method frontier"
        )
    if kl_at_most is not None:
        raise UsageError("--kl-at-most goes with 'pick' for the trial")
    if at_least and multiplier:
        raise UsageError("say --at-least or --multiplier, not both: one follows from the other")
    from orchestrator.execution.sampling.replies import answered, priced

    if multiplier:
        prices = numbers(multiplier, "--multiplier", "CONSTRAINT=NATS, such as saturation=2.5", "constraint")
        say_measured(trial.config, "these multipliers")
        return priced(store, plan, trial_id, prices)
    thresholds = numbers(at_least, "--at-least", "REWARD=VALUE, such as saturation=0.6", "reward")
    say_measured(trial.config, "these thresholds")
    return answered(store, plan, trial_id, thresholds)


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


def _family(store: "SweepStore") -> "Family | None":
    """Return the family of the pipeline that a sweep's adapters are for, as far as it is known here."""
    from orchestrator.report.sweep import read_plan
    from orchestrator.spec import family_named

    model = read_plan(store).base.model
    part = model if model.composition is None else model.composition.base
    return None if part is None or part.pretrained is None else family_named(part.pretrained, part.revision)


def _members(store: "SweepStore", found: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """Return the adapters of a mixture's members by trial id; of a trial for a box, what it is at the multipliers."""
    from orchestrator.frontier.sampled import PRETRAINED

    adapters = {}
    for member in found["mixture"]:
        trial_id = member["trial_id"]
        if "multipliers" in member:
            from orchestrator.execution.sampling.replies import priced
            from orchestrator.report.sweep import read_plan

            adapters[trial_id] = priced(store, read_plan(store), trial_id, member["multipliers"]).files()
        elif trial_id != PRETRAINED:
            adapters[trial_id] = _adapter(store, trial_id)
    return adapters
