"""The sampler's chain in a spec: what second order needs, and where it does not go."""

import pytest

from orchestrator.errors import SpecError
from orchestrator.plan import make_plan
from orchestrator.spec import dump_spec
from orchestrator.spec.load import parse_spec
from trainers.config import SamplingConfig

PIPELINE = """\
name: demo
model: {pretrained: embedded}
sampling: SAMPLING
constraints: [{reward: saturation, at_least: 0.5, unit: sigma}]
"""
ADAPTERS = """\
name: demo
models: {a: {adapter: saturation}, b: {adapter: contrast}}
sampling: SAMPLING
objective: {minmax_kl: [a, b]}
"""


def chain(sampling: str, spec: str = PIPELINE) -> SamplingConfig:
    return parse_spec(spec.replace("SAMPLING", sampling)).sampling


def test_of_second_order_the_last_step_rests_and_timesteps_are_trailing() -> None:
    written = chain("{steps: 5, order: 2}")
    assert written == chain("{steps: 5, order: 2, rest: 1, spacing: trailing}")
    assert written.words == "5 trailing steps of second order, eta 1, adapter off in the last 1"
    assert (chain("{order: 2, rest: 3}").rest, chain("{order: 2}").steps) == (3, 8)
    first = chain("{steps: 5}")
    assert (first.order, first.spacing, first.rest) == (1, None, 2)
    assert first.words == "5 steps, eta 1, adapter off in the last 2"
    assert (
        chain("{steps: 7, rest: 1, spacing: trailing}").words
        == "7 trailing steps, eta 1, adapter off in the last 1"
    )


def test_what_is_written_out_is_the_same_chain_and_the_same_trial() -> None:
    spec = parse_spec(PIPELINE.replace("SAMPLING", "{steps: 5, order: 2}"))
    again = parse_spec(dump_spec(spec))
    assert again.sampling == spec.sampling
    ids = [[trial.trial_id for trial in make_plan(each).trials] for each in (spec, again)]
    assert ids[0] == ids[1]


def test_the_order_makes_another_trial_and_its_default_does_not() -> None:
    def trial_id(sampling: str) -> str:
        return make_plan(parse_spec(PIPELINE.replace("SAMPLING", sampling))).trials[0].trial_id

    plain = trial_id("{steps: 5, rest: 1}")
    assert plain == trial_id("{steps: 5, rest: 1, order: 1, spacing: null}")
    others = [trial_id("{steps: 5, order: 2}"), trial_id("{steps: 5, rest: 1, spacing: trailing}"), plain]
    assert len(set(others)) == 3


@pytest.mark.parametrize(
    ("sampling", "spec", "key", "rule"),
    [
        ("{order: 2, rest: 0}", PIPELINE, "sampling.rest", "must be at least 1 with sampling.order 2"),
        (
            "{order: 2, spacing: leading}",
            PIPELINE,
            "sampling.spacing",
            "must be trailing with sampling.order 2",
        ),
        (
            "{order: 2, spacing: linspace}",
            PIPELINE,
            "sampling.spacing",
            "must be trailing with sampling.order 2",
        ),
        ("{order: 2, spacing: null}", PIPELINE, "sampling.spacing", "must be trailing with sampling.order 2"),
        ("{order: 2, eta: 0.5}", PIPELINE, "sampling.eta", "must be 1 with sampling.order 2"),
        ("{order: 2, eta: 0}", PIPELINE, "sampling.eta", "path-wise KL is infinite"),
        ("{order: 2, steps: 1}", PIPELINE, "sampling.rest", "must be less than the 1 steps of sampling"),
        ("{order: 2}", ADAPTERS, "sampling.order", "must be 1 for a composition"),
    ],
)
def test_what_second_order_cannot_be_is_one_error(sampling: str, spec: str, key: str, rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        chain(sampling, spec)
    assert rule in str(caught.value)
    assert key in str(caught.value)
    assert str(caught.value).count("sampling.") <= 3


def test_timesteps_of_a_composition_of_networks_may_be_spaced() -> None:
    assert chain("{spacing: trailing}", ADAPTERS).spacing == "trailing"
