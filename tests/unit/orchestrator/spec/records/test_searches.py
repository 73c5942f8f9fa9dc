"""Searches in a spec: ranges, the certified search, weights chosen by Optuna; and what is refused with which words."""

import json

import jsonschema
import pytest
import yaml
from support.models.compositions import SPEC as COMPOSITION

from orchestrator.errors import SpecError
from orchestrator.spec.load import dump_spec, parse_spec
from orchestrator.spec.records.searches import asks_box, described, max_trials, searched_count
from orchestrator.spec.records.terms import RewardConstraint, ThresholdRange

SPEC = """\
name: demo
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
objective: {kl: pretrained}
constraints:
  - reward: {linear: {direction: [1.0, 0.0]}}
    name: right
    at_least: {range: [0.2, 1.0]}
    unit: sigma
  - reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}
    name: near
    at_least: {range: [+10%, +60%]}
    unit: relative
  - {reward: right, name: floor, at_least: 0.1}
methods:
  - constrained
  - weighted:
      search: {sampler: tpe, trials: 12, low: 0.01, high: 10}
  - weighted: {weights: equal, scale: {grid: [0.1, 1.0]}}
search:
  kind: certified
  tolerance: 0.05
seeds: [0, 1]
"""
GRID = """\
name: demo
model: {mixture: {weights: [1], means: [[0, 0]], covariances: [[[1, 0], [0, 1]]]}}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: 0.5}
methods:
  - weighted: {search: {trials: 3}}
"""
CONSTRAINTS = SPEC[SPEC.index("constraints:") : SPEC.index("methods:")]


def constraints(count: int, last: str = "{range: [0, 1]}") -> str:
    """Constraints on different rewards, of which the last has another threshold."""
    reward = "reward: {{linear: {{direction: [1.0, {}]}}}}"
    lines = [
        f"  - {{{reward.format(index)}, name: r{index}, at_least: {{range: [0, 1]}}}}"
        for index in range(count - 1)
    ]
    lines.append(f"  - {{{reward.format(count)}, name: last, at_least: {last}}}")
    return "constraints:\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text", [SPEC, GRID, SPEC.replace("kind: certified", "kind: certified\n  max_trials: 7")]
)
def test_a_dumped_spec_loads_to_an_equal_one(text: str) -> None:
    spec = parse_spec(text)
    assert parse_spec(dump_spec(spec)) == spec
    assert dump_spec(parse_spec(dump_spec(spec))) == dump_spec(spec)
    assert parse_spec(json.dumps(spec.model_dump(mode="json")), "spec.json") == spec


def test_ranges_are_read_in_the_unit_of_the_constraint() -> None:
    right, near, floor = parse_spec(SPEC).constraints
    assert isinstance(right, RewardConstraint)
    assert isinstance(near, RewardConstraint)
    assert isinstance(right.at_least, ThresholdRange)
    assert isinstance(near.at_least, ThresholdRange)
    assert (right.at_least.low, right.at_least.high) == (0.2, 1.0)
    assert (near.at_least.low, near.at_least.high) == (0.1, 0.6)
    assert (right.loosest, near.loosest, floor.loosest) == (0.2, 0.1, 0.1)
    assert near.written == ("+10%", "+60%")


def test_defaults_of_a_search_for_weights() -> None:
    [method] = parse_spec(GRID).methods
    assert not isinstance(method, str)
    search = method.weighted.search
    assert search is not None
    assert (search.sampler, search.trials, search.low, search.high) == ("tpe", 3, 0.01, 10.0)


@pytest.mark.parametrize(("count", "trials"), [(1, 16), (2, 16), (3, 25), (6, 25)])
def test_a_certified_search_has_more_trials_for_more_constraints(count: int, trials: int) -> None:
    text = SPEC.replace(CONSTRAINTS, constraints(count))
    assert max_trials(parse_spec(text)) == trials
    assert searched_count(parse_spec(text)) == 2 * (trials + 12)
    assert max_trials(parse_spec(text, overrides=["search.max_trials=9"])) == 9


def test_the_schema_takes_what_loads(validator: jsonschema.Draft202012Validator) -> None:
    for text in (SPEC, GRID):
        validator.validate(yaml.safe_load(text))
        validator.validate(json.loads(parse_spec(text).model_dump_json(exclude_none=True)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{range: [0.2, 1.0]}", "{range: [0.2]}"),
        ("{range: [0.2, 1.0]}", "{range: [0.2, 0.5, 1.0]}"),
        ("{range: [0.2, 1.0]}", "{ranges: [0.2, 1.0]}"),
        ("sampler: tpe", "sampler: cmaes"),
        ("trials: 12", "trials: 0"),
        ("trials: 12, ", ""),
        ("low: 0.01", "low: 0"),
        ("tolerance: 0.05", "tolerance: 0"),
        ("tolerance: 0.05", "tolerances: 0.05"),
    ],
)
def test_the_schema_refuses(validator: jsonschema.Draft202012Validator, old: str, new: str) -> None:
    assert SPEC.count(old) == 1
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(SPEC.replace(old, new)))


# Old text, new text, the line that the message must name, and what it must say.
CASES = [
    # ranges
    ("{range: [0.2, 1.0]}", "{range: [0.2]}", 11, "must be two thresholds, [low, high], got 1"),
    ("{range: [0.2, 1.0]}", "{range: []}", 11, "must be two thresholds, [low, high], got 0"),
    ("{range: [0.2, 1.0]}", "{range: [0, 1, 2]}", 11, "must be two thresholds, [low, high], got 3"),
    (
        "{range: [0.2, 1.0]}",
        "{range: [1.0, 0.2]}",
        11,
        "low end below its high end, but 1.0 is not below 0.2",
    ),
    ("{range: [0.2, 1.0]}", "{range: [1.0, 1]}", 11, "but 1.0 is not below 1"),
    ("{range: [0.2, 1.0]}", "{range: [0.2, high]}", 11, "must be a string that matches"),
    ("{range: [0.2, 1.0]}", "{range: 0.2}", 11, "must be a list"),
    ("{range: [0.2, 1.0]}", "{rang: [0.2, 1.0]}", 11, "did you mean 'range'?"),
    ("{range: [0.2, 1.0]}", "{}", 11, "must be a number, a percentage, {grid: […]} or {range: [low, high]}"),
    ("{range: [0.2, 1.0]}", "{range: [0.2, 1.0], grid: [1]}", 11, "unknown key 'range'"),
    ("{range: [0.2, 1.0]}", "{range: [0.2, +50%]}", 11, "the percentage '+50%' needs unit: relative"),
    ("{range: [+10%, +60%]}", "{range: [+60%, +10%]}", 15, "+60% is not below +10%"),
    # what the certified search needs
    ("  tolerance: 0.05\n", "", 23, "the key 'tolerance' is required by search certified"),
    ("tolerance: 0.05", "tolerance: 0", 25, "must be greater than 0"),
    ("tolerance: 0.05", "tolerance: -1", 25, "must be greater than 0"),
    ("tolerance: 0.05", "tolerances: 0.05", 25, "did you mean 'tolerance'?"),
    ("tolerance: 0.05", "tolerance: 0.05\n  max_trials: 0", 26, "must be greater than 0"),
    ("tolerance: 0.05", "tolerance: 0.05\n  concurrent: 2", 26, "unknown key 'concurrent'"),
    ("kind: certified", "kind: certifed", 24, "did you mean 'certified'?"),
    ("kind: certified", "kind: grid", 25, "goes with kind: certified, the search 'grid' has none"),
    ("{range: [0.2, 1.0]}", "{grid: [0.2, 1.0]}", 11, "a grid does not go with search certified"),
    ("at_least: 0.1}", "at_least: {grid: [0.1]}}", 17, "a grid does not go with search certified"),
    ("  - constrained\n", "", 23, "chooses thresholds of the method constrained"),
    ("objective: {kl: pretrained}", "objective: {reward: near}", 7, "bounds the least KL"),
    ("  - {reward: right, name: floor, at_least: 0.1}", "  - {kl: pretrained, at_most: 3}", 17, "KL budget"),
    (CONSTRAINTS, constraints(7), 8, "handles at most 6 rewards, got 7"),
    (CONSTRAINTS, constraints(1, "0.5"), 16, "has nothing to choose"),
    # weights
    ("sampler: tpe", "sampler: tpee", 21, "must be 'tpe', 'nsga2', 'gp' or 'random'; did you mean 'tpe'?"),
    ("trials: 12, ", "", 21, "the key 'trials' is required"),
    ("trials: 12", "trials: 0", 21, "must be greater than 0"),
    ("trials: 12", "trials: 1.5", 21, "must be an integer"),
    ("trials: 12", "trails: 12", 21, "did you mean 'trials'?"),
    ("low: 0.01", "low: 0", 21, "must be greater than 0"),
    ("low: 0.01", "low: 10", 21, "must be greater than low, which is 10"),
    ("low: 0.01, high: 10", "low: 20", 21, "must be less than high, which is 10"),
    ("low: 0.01, high: 10", "high: 0.001", 21, "must be greater than low, which is 0.01"),
    ("low: 0.01", "lo: 0.01", 21, "did you mean 'low'? allowed: sampler, trials, low, high"),
    ("{sampler: tpe, trials: 12, low: 0.01, high: 10}", "tpe", 21, "must be a mapping"),
    ("      search: {sampler", "      weights: equal\n      search: {sampler", 21, "goes without 'search'"),
    ("      search: {sampler", "      scale: 1\n      search: {sampler", 21, "goes without 'search'"),
    (
        "  - weighted: {weights: equal, scale: {grid: [0.1, 1.0]}}",
        "  - weighted: {search: {trials: 3}}",
        22,
        "is the search at methods.1.weighted.search again",
    ),
]


ASKED = SPEC.replace("  - constrained\n", "  - frontier: {points: 5}\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  - weighted: {weights: equal, scale: {grid: [0.1, 1.0]}}\n",
            "  - frontier: {steps: 50}\n",
            r"methods\.2\.frontier\n.*is a second adapter, and search certified asks one: that of methods\.0",
        ),
        (
            "tolerance: 0.05",
            "tolerance: 0.05\n  rounds: 2",
            r"line 26, .*search\.rounds = 2\n.*is of trials of the method constrained.*methods\.0\.frontier\.rounds",
        ),
        (
            "tolerance: 0.05",
            "tolerance: 0.05\n  max_trials: 4",
            r"line 26, .*search\.max_trials = 4\n.*counts the 5 answers of methods\.0\.frontier\.points too",
        ),
        (
            "seeds: [0, 1]",
            "seeds: [0, 1]\nresources: {workers: 2, shard: true}",
            r"resources\.shard = true\n.*each answer that search certified asks of the method frontier is measured by",
        ),
    ],
)
def test_what_does_not_go_with_an_adapter_that_is_asked(old: str, new: str, message: str) -> None:
    parse_spec(ASKED)
    assert ASKED.count(old) == 1
    with pytest.raises(SpecError, match=message):
        parse_spec(ASKED.replace(old, new), "demo.yaml")


def test_trials_are_searched_where_there_are_any() -> None:
    both = parse_spec(SPEC.replace("  - constrained\n", "  - constrained\n  - frontier: {rounds: 2}\n"))
    assert (asks_box(both), asks_box(parse_spec(ASKED)), asks_box(parse_spec(SPEC))) == (False, True, False)
    assert searched_count(parse_spec(ASKED)) == 2 * 12, "an answer is no trial"
    assert next(described(parse_spec(ASKED))) == (
        "frontier: up to 25 answers of one adapter per seed, certified search chooses right from 0.2σ to 1σ, near from "
        "+10% to +60%, floor at 0.1"
    )


def test_the_spec_is_valid() -> None:
    parse_spec(SPEC)


@pytest.mark.parametrize(("old", "new", "line", "message"), CASES, ids=lambda value: str(value)[:40])
def test_message(old: str, new: str, line: int, message: str) -> None:
    assert SPEC.count(old) == 1, "the replacement must be unambiguous"
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC.replace(old, new), "demo.yaml")
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"demo.yaml, line {line}, column "), text


def test_a_range_needs_the_certified_search() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC.replace("search:\n  kind: certified\n  tolerance: 0.05\n", ""), "demo.yaml")
    heads, rules = (str(caught.value).splitlines()[start::2] for start in (0, 1))
    assert heads == [
        "demo.yaml, line 11, column 5: constraints.0.at_least",
        "demo.yaml, line 15, column 5: constraints.1.at_least",
    ]
    assert all("a range is searched by search: {kind: certified, tolerance: NATS}" in rule for rule in rules)


def test_both_settings_of_another_search_are_named() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(GRID + "search: {kind: grid, tolerance: 0.1, max_trials: 3}\n")
    assert "search.tolerance = 0.1" in str(caught.value)
    assert "search.max_trials = 3" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weighted: {weights: equal}", "weighted: {search: {trials: 3}}", "chooses weights of rewards"),
        ("seeds:", "search: {kind: certified, tolerance: 0.1}\nseeds:", "does not go with a composition"),
        (
            "seeds:",
            "constraints: [{reward: {linear: {direction: [1, 0]}}, at_least: {range: [0, 1]}}]\nseeds:",
            "a range is searched by",
        ),
    ],
)
def test_compositions_are_not_searched(old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(COMPOSITION.replace(old, new))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "one mistake is one problem"


def test_searches_count_among_the_trials() -> None:
    with pytest.raises(SpecError, match="make 120,000 trials; at most 100,000"):
        parse_spec(GRID.replace("trials: 3", "trials: 120000"))
    with pytest.raises(SpecError, match=r"make 200,028 trials; at most 100,000"):
        parse_spec(SPEC, overrides=["search.max_trials=100000"])


def test_searches_that_differ_stand_side_by_side() -> None:
    others = (
        "  - weighted: {search: {trials: 3, high: 5}}\n  - weighted: {search: {trials: 3, sampler: gp}}\n"
    )
    assert searched_count(parse_spec(GRID + others)) == 9
