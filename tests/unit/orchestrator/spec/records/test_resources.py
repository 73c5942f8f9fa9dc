"""Elastic workers, their placement, and how often a trial is started again."""

import pytest

from orchestrator.errors import SpecError
from orchestrator.plan import Plan, make_plan
from orchestrator.report.terminal.tables import plan_table
from orchestrator.spec.load import dump_spec, parse_spec
from orchestrator.spec.records.models import ElasticWorkers
from orchestrator.terminal import stdout

SPEC = """\
name: demo
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: 0.5}]
training: {accumulation: 3}
"""


def planned(resources: str) -> Plan:
    return make_plan(parse_spec(f"{SPEC}resources: {resources}\n"))


def test_elastic_workers_are_planned_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{SPEC}resources: {{workers: {{min: 1, max: 4}}, placement: spread, gpus_per_worker: 0.5}}\n"
    spec = parse_spec(text)
    assert spec.resources.workers == ElasticWorkers(min=1, max=4)
    assert parse_spec(dump_spec(spec)) == spec
    plan = make_plan(spec)
    document = plan.to_json()
    assert document["resources"]["per_trial"] == {"cpus": 4, "gpus": 2}
    assert Plan.from_json(document).resources == spec.resources
    (trial,) = plan.trials
    assert (trial.config.workers, trial.config.elastic) == (4, True)
    assert plan.warnings == ()
    stdout().print(plan_table(document))
    assert "1 to 4 worker(s)" in capsys.readouterr().out


def test_only_what_changes_results_changes_the_id() -> None:
    fixed = planned("{workers: 4}").trials[0].trial_id
    assert planned("{workers: 4, placement: spread, retries: {losses: 2}}").trials[0].trial_id == fixed
    elastic = planned("{workers: {min: 1, max: 4}}").trials[0].trial_id
    assert elastic != fixed, "micro-batches are estimates of their own"
    assert planned("{workers: {min: 2, max: 4}}").trials[0].trial_id == elastic


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ("{workers: {min: 1, max: 5}}", "2 workers cannot share the 15 micro-batches .* multiple of 12"),
        (
            "{workers: {min: 1, max: 30}}",
            "4 workers cannot share the 90 micro-batches .*: choose closer limits",
        ),
        ("{workers: {min: 1, max: 20000}}", "7 workers cannot share the 60000 .*: choose closer limits"),
        ("{workers: {min: 1, max: 1000000000000}}", "7 workers cannot share .*: choose closer limits"),
        ("{workers: {min: 2, max: 2}}", "must be greater than min .*write workers: 2"),
        ("{workers: {min: 1}}", "max"),
        ("{workers: {min: 1, max: 4, most: 4}}", "most"),
        ("{workers: many}", "a number of workers, or {min: 1, max: 4}"),
        ("{workers: 0}", "workers"),
        ("{placement: scatter}", "'pack'.*'spread'"),
        ("{retries: {errors: -1}}", "errors"),
    ],
)
def test_what_cannot_be_meant_is_refused(resources: str, said: str) -> None:
    with pytest.raises(SpecError, match=f"(?s)resources.*{said}|(?s:{said})"):
        planned(resources)


def test_a_placement_that_does_nothing_is_said() -> None:
    (warning,) = planned("{placement: spread}").warnings
    assert "has no effect" in warning
    assert planned("{placement: spread, workers: 2}").warnings == ()


def test_a_worker_has_whole_prompts() -> None:
    with pytest.raises(SpecError, match=r"training.images_per_prompt = 3\n.*write a divisor"):
        parse_spec(SPEC.replace("{accumulation: 3}", "{batch_per_worker: 8, images_per_prompt: 3}"))


def test_stored_samples_have_one_image_of_a_prompt_at_a_time() -> None:
    changed = SPEC.replace("{accumulation: 3}", "{batch_per_worker: 8, images_per_prompt: 2}")
    with pytest.raises(SpecError, match=r'duals.paired = "stored"\n.*asks for 2: write noise'):
        parse_spec(changed + "duals: {paired: stored}\n")


COMPOSED = """\
name: demo
models: {a: {prompt: red}, b: {prompt: blue}}
objective: {minmax_kl: [a, b]}
constraints: []
"""
PIPELINE = """\
name: demo
model: {pretrained: embedded}
constraints: [{reward: saturation, at_least: 0.5}]
"""


def test_a_pack_changes_no_trial() -> None:
    alone = make_plan(parse_spec(PIPELINE))
    for pack in ("auto", "4"):
        packed = make_plan(parse_spec(f"{PIPELINE}resources: {{pack: {pack}}}\n"))
        assert [trial.trial_id for trial in packed.trials] == [trial.trial_id for trial in alone.trials]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{SPEC}resources: {{pack: 2}}", "a mixture has no network"),
        (f"{PIPELINE}resources: {{pack: 2, workers: 2}}", "packed trials have one worker each"),
        (
            f"{PIPELINE}training: {{compile: true}}\nresources: {{pack: 2}}",
            "training.compile asks the network",
        ),
        (f"{PIPELINE}resources: {{pack: 0}}", "greater than 0"),
        (f"{PIPELINE}resources: {{pack: all}}", "'auto' or a number of trials"),
    ],
)
def test_what_cannot_share_a_process_is_refused(text: str, why: str) -> None:
    with pytest.raises(SpecError, match=f"(?s)resources.pack.*{why}"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{SPEC}resources: {{shard: true, workers: 2}}", "only the network of a pipeline"),
        (f"{COMPOSED}resources: {{shard: true}}", "only the network of a pipeline that is trained"),
        (f"{PIPELINE}resources: {{shard: true}}", "which has 1 at least .*ask for two or more"),
        (f"{PIPELINE}resources: {{shard: true, workers: {{min: 1, max: 2}}}}", "which has 1 at least"),
        (
            f"{PIPELINE}training: {{compile: true}}\nresources: {{shard: true, workers: 2}}",
            "training.compile",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(text: str, why: str) -> None:
    with pytest.raises(SpecError, match=f"(?s)resources.shard.*{why}"):
        parse_spec(text)


def test_splitting_changes_no_trial() -> None:
    workers = "training: {accumulation: 2}\nresources: {workers: 2"
    (whole,), (split,) = (
        make_plan(parse_spec(f"{PIPELINE}{workers}{rest}}}\n")).trials for rest in ("", ", shard: true")
    )
    assert whole.trial_id == split.trial_id
