"""The trials of a composition of networks: their configs, names, ids and warnings."""

import json

import pytest
from support.models.networks import ADAPTERS, PIPELINES, PROMPTS

from orchestrator.plan import Plan, describe, make_plan
from orchestrator.spec.identity import trial_id
from orchestrator.spec.load import dump_spec, parse_spec

SETTLED = """\
objective: {minmax_kl: [cat, dog, sun], sampler: score}
sampling: {steps: 10, rest: 0, guidance: 3.0}
training: {steps: 12, batch_per_worker: 64}
evaluation: {images: 256, every: 1}
convergence: {window: 4, tolerance: 0.05}
"""
# Of PROMPTS with these. A change here makes `resume` repeat finished trials: say so in the changelog.
GOLDEN = [
    "e8bb3a296d51",
    "349aef6d9403",
]


def plan_of(text: str) -> Plan:
    return make_plan(parse_spec(text))


def ids(text: str) -> set[str]:
    return {trial.trial_id for trial in plan_of(text).trials}


def test_golden_ids() -> None:
    text = PROMPTS.replace("objective: {minmax_kl: [cat, dog, sun]}\n", SETTLED)
    assert [trial.trial_id for trial in plan_of(text).trials] == GOLDEN


def test_baselines_are_methods() -> None:
    text = f"{ADAPTERS}  - weighted: {{weights: equal, sampler: merged}}\ndistillation: {{steps: 7}}\n"
    plan = plan_of(text)
    compositions = [trial.config.model.composition for trial in plan.trials]
    assert [c.sampler for c in compositions if c] == ["fkc", "fkc", "merged"]
    assert [c.distillation is None for c in compositions if c] == [False, False, True], "it is one already"
    assert [describe(trial.config) for trial in plan.trials] == [
        "constrained and of vivid, bright, crisp seed 0",
        "weighted vivid·0.33 bright·0.33 crisp·0.33 seed 0",
        "weighted vivid·0.33 bright·0.33 crisp·0.33 by merged seed 0",
    ]
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("text", [ADAPTERS, PROMPTS, PIPELINES])
def test_ids_do_not_depend_on_what_means_nothing(text: str) -> None:
    data = parse_spec(text)
    assert isinstance(data.models, dict)
    expected = ids(text)
    assert ids(dump_spec(data)) == expected
    backwards = dict(reversed(data.models.items()))
    objective = data.objective.model_copy(update={"minmax_kl": tuple(backwards)})
    turned = data.model_copy(update={"models": backwards, "objective": objective})
    assert {trial.trial_id for trial in make_plan(turned).trials} == expected
    assert all(trial.trial_id == trial_id(trial.config) for trial in plan_of(text).trials)


def test_ids_depend_on_what_defines_a_trial() -> None:
    changed = [
        ADAPTERS,
        ADAPTERS + "model: {pretrained: owner/name}\nprompts: {train: shapes, evaluate: shapes-held-out}\n",
        ADAPTERS + "distillation: {}\n",
        ADAPTERS + "distillation: {lora: {rank: 2}}\n",
        ADAPTERS.replace("adapter: contrast", "adapter: saturation"),
        ADAPTERS.replace("[saturation]", "[]"),
        ADAPTERS.replace("crisp]}", "crisp], sampler: score}"),
        PROMPTS,
        PROMPTS.replace("a cat", "two cats"),
        PROMPTS.replace("output: logit", "output: probability"),
    ]
    found = [ids(text) for text in changed]
    assert len(set.union(*found)) == sum(map(len, found))
    same = ADAPTERS + "distillation: {lora: {rank: 2, alpha: 2}}\n"
    assert ids(same) == ids(changed[3])


def test_rewards_are_in_the_config() -> None:
    config = plan_of(PROMPTS).trials[0].config
    assert config.prompts is None
    assert {reward.name for reward in config.rewards} >= {"clip_cat", "clip_dog", "clip_sun", "clip_least"}
    measured = {reward.name for reward in config.rewards}
    assert config.model.composition is not None
    for model in config.model.composition.models:
        assert set(model.rewards) <= measured


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (PROMPTS + "sampling: {guidance: 3.0}\n", "guidance 3 prompts are many nats apart"),
        (ADAPTERS + "training: {precision: bf16}\n", "bf16: the models"),
        (PROMPTS + "training: {precision: bf16}\n", "bf16: the models"),
        (PROMPTS + "training: {precision: fp16}\n", "fp16: the models"),
        (PIPELINES.replace("main}", "main, rewards: [saturation]}"), "these pipelines have none"),
        (ADAPTERS.replace("crisp]}", "crisp], direction: forward, sampler: score}"), "has no effect"),
        (ADAPTERS.replace(", crisp]}", "]}"), "crisp has no part in the composition"),
    ],
)
def test_warnings(text: str, warning: str) -> None:
    [said] = plan_of(text).warnings
    assert warning in said


@pytest.mark.parametrize(
    "text",
    [
        ADAPTERS + "sampling: {guidance: 3.0}\n",
        PROMPTS + "sampling: {guidance: 1.0}\n",
        (PROMPTS + "sampling: {guidance: 3.0}\n").replace("sun]}", "sun], sampler: score}"),
        PIPELINES,
    ],
)
def test_nothing_to_warn_of(text: str) -> None:
    assert plan_of(text).warnings == ()


def test_groups_of_samples_share_a_prompt() -> None:
    trials = {
        text: plan_of(text + "evaluation: {images: 50}\n").trials[0].config for text in (ADAPTERS, PROMPTS)
    }
    assert trials[ADAPTERS].judged == (7, 64)
    assert trials[PROMPTS].judged is None
