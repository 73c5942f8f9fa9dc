"""``model.quantise`` in a spec: what it needs, what it goes without, and what is known by it."""

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.plan import base_config, make_plan
from orchestrator.results.sample_cache import samples_key
from orchestrator.spec import extras
from orchestrator.spec.load import parse_spec

SPEC = """\
name: demo
model: {pretrained: embedded, quantise: nf4}
constraints: [{reward: saturation, at_least: 0.5}]
"""
COMPOSED = """\
name: demo
model: {pretrained: embedded, quantise: nf4}
models: {a: {prompt: red}, b: {prompt: blue}}
objective: {minmax_kl: [a, b]}
constraints: []
"""


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC, directory=Path())
    assert 'model.quantise = "nf4"' in str(caught.value)
    assert "pip install 'cdsweep[quantise]'" in str(caught.value)
    parse_spec(SPEC)  # a stored sweep can be read anywhere
    plain = SPEC.replace(", quantise: nf4", "")
    parse_spec(plain, directory=Path())
    small = f"{plain}training: {{optimizer: adam_8bit}}\nresources: {{gpus_per_worker: 1}}\n"
    with pytest.raises(SpecError) as caught:
        parse_spec(small, directory=Path())
    assert 'training.optimizer = "adam_8bit"' in str(caught.value)
    assert "pip install 'cdsweep[quantise]'; adam does without" in str(caught.value)
    parse_spec(small)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SPEC.replace("nf4", "nf5"), "model.quantise.*nf4"),
        (f"{SPEC}training: {{compile: true}}", "training.compile = true.*model.quantise"),
        (f"{SPEC}resources: {{pack: 2}}", "resources.pack = 2.*model.quantise"),
        (f"{SPEC}resources: {{shard: true, workers: 2}}", "resources.shard = true.*model.quantise"),
        (COMPOSED, 'model.quantise = "nf4".*training of one model'),
        (
            SPEC.replace(
                "pretrained: embedded", "mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}"
            ),
            "'quantise' must go with 'pretrained'",
        ),
    ],
)
def test_what_it_does_not_go_with_is_refused(text: str, said: str) -> None:
    with pytest.raises(SpecError, match=f"(?s){said}"):
        parse_spec(text)


def test_trials_and_samples_of_the_pretrained_model_are_known_by_it() -> None:
    packed, whole = (parse_spec(text) for text in (SPEC, SPEC.replace(", quantise: nf4", "")))
    assert {t.trial_id for t in make_plan(packed).trials}.isdisjoint(
        t.trial_id for t in make_plan(whole).trials
    )
    assert samples_key(base_config(packed)) != samples_key(base_config(whole))
