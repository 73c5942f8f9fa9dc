"""``cdsweep pick``, ``export`` and ``sample`` where models are composed: adapters at weights of the models."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.terminal import numbers, say

if TYPE_CHECKING:
    from orchestrator.execution.sampling.weighed import Weighed
    from orchestrator.plan import Plan, PlannedTrial
    from orchestrator.results.store import SweepStore
    from trainers.config import TrialConfig


def say_weighed(config: "TrialConfig", what: str) -> None:
    """Say what is waited for."""
    say(f"measuring {what}: {config.evaluation.images} held-out images, where it was not yet")


def picked_composed(
    store: "SweepStore",
    plan: "Plan",
    multiplier: list[str] | None,
    others: Mapping[str, object],
) -> "tuple[dict[str, Any], Weighed | None]":
    """Return the document of ``cdsweep pick`` for a composition, and the adapter where it was measured for it.

    Without weights the adapter is picked, of all that were measured, whose farthest model is nearest.

    Args:
        store: The sweep.
        plan: Its own.
        multiplier: Weights of the models, as they are written.
        others: Values of options that do not go with a composition, by the option.

    Raises:
        UsageError: One of these is given, or there is no adapter; says what there could be.
    """
    from orchestrator.frontier.composed_adapters import ComposedAdapter, composed_adapters, nearest
    from orchestrator.report.sweep import any_config

    given = [name for name, value in others.items() if value]
    if given:
        raise UsageError(
            f"a composition has no KL to a pretrained model to pick by: leave out {', '.join(given)}; --multiplier "
            "MODEL=WEIGHT asks for weights, and without it the adapter is picked whose farthest model is nearest"
        )
    config = any_config(plan)
    known = composed_adapters(config, store.trials().to_pylist(), store.answers().to_pylist())
    if not known:
        raise UsageError(
            "a composition has no KL to a pretrained model to pick by, and no trial of this one has an adapter "
            "whose KL to every model is known: "
            "distillation: {steps: 200} makes one of each, and the method frontier one for all weights"
        )
    found, chosen = None, nearest(config, known)
    if multiplier:
        asked = numbers(multiplier, "--multiplier", "MODEL=WEIGHT, such as saturation=0.5", "model")
        found = _weighed(store, plan, asked)
        chosen = ComposedAdapter.of_answer(found.trial_id, found.answer)
    return {**chosen.to_json(), "answers": [one.to_json() for one in known]}, found


def picked_files(
    store: "SweepStore",
    plan: "Plan",
    multiplier: list[str] | None,
    others: Mapping[str, object],
) -> tuple[str, dict[str, bytes]]:
    """Return the trial that ``picked_composed`` names, and the files of the plain adapter that it is there."""
    from orchestrator.execution.sampling.weighed import weighed
    from orchestrator.frontier.composed_adapters import FRONTIER

    document, found = picked_composed(store, plan, multiplier, others)
    trial_id: str = document["trial_id"]
    if found is None and document["method"] == FRONTIER:
        found = weighed(store, plan, trial_id, document["multipliers"])
    return trial_id, store.adapter(trial_id) if found is None else found.files()


def weighed_by(
    store: "SweepStore",
    plan: "Plan",
    trial: "PlannedTrial",
    multiplier: list[str] | None,
    others: Mapping[str, object],
) -> "Weighed":
    """Return what a trial of a composition is at weights of its models.

    Raises:
        UsageError: It has weights of its own alone, or other options are given.
    """
    from orchestrator.execution.sampling.weighed import weighed
    from orchestrator.frontier.composed_adapters import FRONTIER

    if trial.config.method != FRONTIER:
        raise UsageError(
            f"trial {trial.trial_id} has weights that stand still ({trial.config.method}): --multiplier goes with "
            "'pick', or with a trial of the method frontier"
        )
    given = [name for name, value in others.items() if value]
    if given or not multiplier:
        raise UsageError(
            f"trial {trial.trial_id} answers weights of its models: write --multiplier MODEL=WEIGHT, and leave out "
            f"{', '.join(given)}"
        )
    asked = numbers(multiplier, "--multiplier", "MODEL=WEIGHT, such as saturation=0.5", "model")
    say_weighed(trial.config, "these weights")
    return weighed(store, plan, trial.trial_id, asked)


def _weighed(store: "SweepStore", plan: "Plan", asked: Mapping[str, float]) -> "Weighed":
    """Return what a finished trial for all weights is at some; of several that whose farthest model is nearest."""
    from orchestrator.execution.sampling.weighed import weighed
    from orchestrator.frontier.composed_adapters import FRONTIER, ComposedAdapter

    finished = {row["trial_id"] for row in store.trials().to_pylist() if row["status"] == "succeeded"}
    trials = [t for t in plan.trials if t.config.method == FRONTIER and t.trial_id in finished]
    if not trials:
        raise UsageError(
            "no trial of this sweep answers weights of the models: write methods: [- frontier: {}]"
        )
    composition = trials[0].config.model.composition
    assert composition is not None, "a composition"

    def radius(found: "Weighed") -> float:
        return ComposedAdapter.of_answer(found.trial_id, found.answer).radius(composition.offsets)

    say_weighed(trials[0].config, "these weights")
    found = min((weighed(store, plan, trial.trial_id, asked) for trial in trials), key=radius)
    if unknown := ComposedAdapter.of_answer(found.trial_id, found.answer).unknown:
        raise UsageError(
            f"no trial has a known KL to every model at these weights: of {found.trial_id} that to "
            f"{', '.join(unknown)} is missing; 'export {found.trial_id}' writes it nevertheless"
        )
    return found
