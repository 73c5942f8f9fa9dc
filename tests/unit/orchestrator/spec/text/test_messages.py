"""What users read when a spec is wrong: line, key, value, rule, choices and the nearest name."""

from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.load import load_spec, parse_spec

SPEC = """\
name: demo
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling:
  steps: 20
  eta: 1.0
objective:
  kl: pretrained
constraints:
  - reward: {linear: {direction: [1.0, 0.0]}}
    name: right
    at_least: {grid: [0.6, 1.0]}
    unit: absolute
  - reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}
    name: near
    at_least: -0.8
  - kl: pretrained
    at_most: 20
methods:
  - constrained
  - weighted:
      weights: {right: 1.0, near: {grid: [0.5, 1]}}
      scale: 0.3
search: {kind: grid}
seeds: [0, 1]
training:
  steps: 100
  precision: fp32
  primal: reward_backprop
duals:
  kind: ascent
  start: preview
  paired: true
convergence:
  window: 10
evaluation:
  every: 20
resources:
  workers: 2
  gpus_per_worker: 0
  concurrent_trials: auto
storage: results
"""

# Old text, new text, the line that the message must name, and what it must say.
CASES = [
    (
        "    at_most: 20",
        "    at_most: {range: [1, 20]}",
        21,
        'at_most = {"range": [1, 20]}\n  must be a number or {grid',
    ),
    (
        "    at_most: 20",
        "    at_most: {grids: [1, 20]}",
        21,
        "at_most.grids = [1, 20]\n  unknown key 'grids'; did you",
    ),
    (
        "scale: 0.3",
        "scale: {low: 1, high: 2}",
        26,
        'scale = {"low": 1, "high": 2}\n  must be a number or {grid: […]}',
    ),
    ("near: {grid: [0.5, 1]}", "near: {}", 25, "weights.near = {}\n  must be a number or {grid: […]}"),
    (
        "  workers: 2",
        "  workers: {least: 1, most: 2}",
        42,
        'workers = {"least": 1, "most": 2}\n  must be a number of w',
    ),
    (
        "  workers: 2",
        "  workers: {mim: 1, max: 2}",
        42,
        "workers.mim = 1\n  unknown key 'mim'; did you mean 'min'?",
    ),
    ("  workers: 2", "  pack: [2]", 42, "pack = [2]\n  must be 'auto' or a number of trials"),
    ("  concurrent_trials: auto", "  concurrent_trials: {a: 1}", 44, "must be 'auto' or a number of trials"),
    ("  mixture:", "  height: 64\n  mixture:", 3, "model.height = 64\n  'height' must go with 'pretrained'"),
    (
        "  mixture:",
        "  variant: fp16\n  mixture:",
        3,
        "model.variant = \"fp16\"\n  'lora', 'revision' and 'variant' go",
    ),
    (
        "storage:",
        "budget: {wall: 2h}\nstorage:",
        45,
        'budget.wall = "2h"\n  goes with search: {kind: certified}',
    ),
    ("name: demo", "naame: demo", 1, "unknown key 'naame'; did you mean 'name'?"),
    ("name: demo", "name: 3", 1, "must be a string"),
    ("name: demo", "name: a/b", 1, "must be a string that matches"),
    ("  mixture:", "  mixtures:", 3, "did you mean 'mixture'? allowed: mixture, pretrained, revision, lora"),
    ("  mixture:", "  pretrained: a/b\n  mixture:", 2, "needs either 'mixture' or 'pretrained'"),
    ("  mixture:", "  lora: {}\n  mixture:", 3, "a mixture has no layers to adapt"),
    ("sampling:", "prompts: {train: shapes, evaluate: [a]}\nsampling:", 7, "a mixture has no prompts"),
    ("weights: [0.5, 0.5]", "weights: [0.5, 0.6]", 3, "must sum to 1, got 1.1"),
    ("weights: [0.5, 0.5]", "weights: [0.5, half]", 4, "must be a number"),
    ("weights: [0.5, 0.5]", "weightz: [0.5, 0.5]", 4, "did you mean 'weights'?"),
    ("[0.0, 0.3]]", "[0.0, -0.3]]", 3, "positive definite"),
    ("  steps: 20", "  stepz: 20", 8, "did you mean 'steps'? allowed: steps, eta, guidance"),
    ("  steps: 20", "  steps: 2.5", 8, "must be an integer"),
    ("  steps: 20", "  steps: 0", 8, "must be greater than 0"),
    ("  eta: 1.0", "  rest: 2", 9, "must be 0 for a mixture"),
    ("  eta: 1.0", "  rest: 20", 9, "must be less than the 20 steps of sampling"),
    ("  eta: 1.0", "  eta: 0", 9, "path-wise KL is infinite"),
    ("  eta: 1.0", "  order: 2\n  eta: 0.5", 10, "must be 1 with sampling.order 2"),
    ("  eta: 1.0", "  order: 3", 9, "must be 1 or 2"),
    ("  eta: 1.0", "  spacing: trailng", 9, "did you mean 'trailing'?"),
    (
        "  eta: 1.0",
        "  spacing: trailing",
        9,
        "goes with pipelines: the chain of a mixture has levels of its own",
    ),
    ("  eta: 1.0", "  eta: 1.5", 9, "must be at most 1"),
    ("  kl: pretrained\nconstr", "  kll: pretrained\nconstr", 11, "did you mean 'kl'?"),
    ("  kl: pretrained\nconstr", "  kl: pretained\nconstr", 11, "did you mean 'pretrained'?"),
    (
        "  kl: pretrained\nconstr",
        "  reward: rihgtt\nconstr",
        11,
        "unknown reward 'rihgtt'; did you mean 'right'?",
    ),
    ("- reward: {linear:", "- rewad: {linear:", 13, "did you mean 'reward'?"),
    ("{linear:", "{liner:", 13, "did you mean 'linear'? registered: linear, quadratic"),
    (
        "{linear: {direction: [1.0, 0.0]}}",
        "clip",
        13,
        "the reward 'clip' scores images: it needs model: {pre",
    ),
    (
        "{linear: {direction: [1.0, 0.0]}}",
        "{saturation: {aim: low}}",
        13,
        "the reward 'saturation' scores images",
    ),
    ("{linear: {direction: [1.0, 0.0]}}", "{saturation: {aim: lwo}}", 13, "did you mean 'low'?"),
    ("{linear: {direction: [1.0, 0.0]}}", "{mps: {mask_treshold: 1}}", 13, "did you mean 'mask_threshold'?"),
    ("{linear: {direction: [1.0, 0.0]}}", "saturatoin", 13, "did you mean 'saturation'?"),
    ("direction: [1.0, 0.0]", "directoin: [1.0, 0.0]", 13, "did you mean 'direction'? allowed: direction"),
    ("direction: [1.0, 0.0]", "direction: [1.0, x]", 13, "must be a number"),
    (
        "direction: [1.0, 0.0]",
        "direction: [1.0]",
        13,
        "must have length 2, the dimension of the mixture, got 1",
    ),
    ("direction: [1.0, 0.0]", "direction: [0, 0]", 13, "must not be zero"),
    ("direction: [1.0, 0.0]", "", 13, "the key 'direction' is required"),
    ("{linear: {direction: [1.0, 0.0]}}", "linear", 13, "the reward 'linear' needs parameters"),
    ("{linear: {direction: [1.0, 0.0]}}", "7", 13, "must be the name of a reward, or"),
    ("    name: right", "    name: near", 18, "another reward is called 'near' already, at constraints.0"),
    ("at_least: {grid: [0.6, 1.0]}", "at_least: {grid: []}", 15, "must not be empty"),
    ("at_least: {grid: [0.6, 1.0]}", "at_least: {grid: [1, 0.6, 1.0]}", 15, "is in the grid twice"),
    ("at_least: {grid: [0.6, 1.0]}", "at_least: {gridd: [1]}", 15, "did you mean 'grid'?"),
    ("at_least: {grid: [0.6, 1.0]}", "at_least: [1]", 15, "must be a number"),
    ("at_least: {grid: [0.6, 1.0]}", "at_least: +50%", 15, "the percentage '+50%' needs unit: relative"),
    ("unit: absolute", "unit: sigmas", 16, "did you mean 'sigma'?"),
    ("    at_least: -0.8", "    at_leest: -0.8", 19, "did you mean 'at_least'?"),
    ("    at_least: -0.8\n", "", 17, "the key 'at_least' is required"),
    ("    at_least: -0.8", "    at_least: high", 19, "must be a string that matches"),
    ("  - kl: pretrained", "  - kl: other", 20, "must be 'pretrained'"),
    ("at_most: 20", "at_least: 20", 21, "did you mean 'at_most'? allowed: kl, name, at_most"),
    ("at_most: 20", "at_most: -1", 21, "must be greater than 0"),
    ("  - constrained", "  - constraind", 23, "did you mean 'constrained'?"),
    ("  - weighted:", "  - weighed:", 24, "did you mean 'weighted'?"),
    (
        "weights: {right: 1.0,",
        "weights: {rihgt: 1.0,",
        25,
        "did you mean 'right'? rewards of this spec: right, near",
    ),
    ("weights: {right: 1.0,", "weights: {right: -1,", 25, "must be at least 0"),
    ("weights: {right: 1.0, near: {grid: [0.5, 1]}}", "weights: eqal", 25, "did you mean 'equal'?"),
    ("scale: 0.3", "scale: 0", 26, "must be greater than 0"),
    ("scale: 0.3", "sclae: 0.3", 26, "did you mean 'scale'?"),
    ("search: {kind: grid}", "search: {kind: gridd}", 27, "did you mean 'grid'?"),
    ("seeds: [0, 1]", "seeds: [0, 0]", 28, "is in the list twice"),
    ("seeds: [0, 1]", "seeds: []", 28, "must not be empty"),
    ("seeds: [0, 1]", "seeds: [0, -1]", 28, "must be at least 0"),
    ("seeds: [0, 1]", "seeds: 3", 28, "must be a list"),
    ("  steps: 100", "  step: 100", 30, "did you mean 'steps'?"),
    ("  steps: 100", "  steps: many", 30, "must be an integer"),
    ("precision: fp32", "precision: fp23", 31, "must be 'fp32', 'bf16' or 'fp16'; did you mean 'fp32'?"),
    ("primal: reward_backprop", "primal: reward_backprob", 32, "did you mean 'reward_backprop'?"),
    ("precision: fp32", "primal_parameters: {steps: 3}", 31, "unknown key 'steps'; allowed: none"),
    (
        "primal: reward_backprop",
        "primal: truncated_backprop\n  primal_parameters: {stepz: 3}",
        33,
        "unknown key 'stepz'; did you mean 'steps'? allowed: steps, random",
    ),
    (
        "primal: reward_backprop",
        "primal: low_variance\n  primal_parameters: {copies: 0}",
        33,
        "must be greater than 0",
    ),
    ("precision: fp32", "optimizer: adam_8bit", 31, "needs a GPU, which training on a mixture does not use"),
    ("precision: fp32", "optimizer: adam_8bits", 31, "did you mean 'adam_8bit'?"),
    (
        "kind: ascent",
        "kind: ascend",
        34,
        "did you mean 'ascent'? registered: ascent, nu_pi, augmented, reweighted",
    ),
    ("start: preview", "start: previw", 35, "must be 'preview', or a number; did you mean 'preview'?"),
    ("paired: true", "paired: yes", 36, "must be true or false, or 'noise', 'stored', 'prompt' or 'none'"),
    ("window: 10", "windows: 10", 38, "did you mean 'window'?"),
    ("  every: 20", "  every: ten", 40, "must be an integer"),
    ("workers: 2", "worker: 2", 42, "did you mean 'workers'?"),
    ("gpus_per_worker: 0", "gpus_per_worker: 1.5", 43, "must be a whole number when it is greater than 1"),
    ("concurrent_trials: auto", "concurrent_trials: atuo", 44, "did you mean 'auto'?"),
    ("storage: results", "storage: [a]", 45, "must be a string"),
    ("storage: results", "storage: results\nstorage: b", 46, "duplicate key 'storage': it is on line 45"),
]


def test_the_spec_is_valid() -> None:
    parse_spec(SPEC)


@pytest.mark.parametrize(("old", "new", "line", "message"), CASES, ids=lambda value: str(value)[:40])
def test_message(old: str, new: str, line: int, message: str) -> None:
    assert SPEC.count(old) == 1, "the replacement must be unambiguous"
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC.replace(old, new), "demo.yaml")
    text = str(caught.value)
    assert text.startswith(f"demo.yaml, line {line}, column "), text
    assert message in text
    assert text.count("demo.yaml") == 1, "one mistake is one problem"


def test_all_problems_are_listed_in_the_order_of_the_text() -> None:
    broken = SPEC.replace("steps: 20", "steps: 0").replace("name: demo", "name: 3").replace("every", "everyy")
    with pytest.raises(SpecError) as caught:
        parse_spec(broken, "demo.yaml")
    heads = str(caught.value).splitlines()[::2]
    assert heads == [
        "demo.yaml, line 1, column 7: name = 3",
        "demo.yaml, line 8, column 10: sampling.steps = 0",
        "demo.yaml, line 40, column 3: evaluation.everyy = 20",
    ]


def test_a_reward_objective_needs_a_budget() -> None:
    bounded = SPEC.replace("  kl: pretrained\nconstr", "  reward: near\nconstr")
    parse_spec(bounded)
    with pytest.raises(SpecError, match=r"line 11.*\n.*needs a KL budget"):
        parse_spec(bounded.replace("  - kl: pretrained\n    at_most: 20\n", ""))


def test_constraints_of_one_name() -> None:
    twice = SPEC.replace("  - kl: pretrained\n", "  - kl: pretrained\n    at_most: 3\n  - kl: pretrained\n")
    with pytest.raises(SpecError, match=r"line 22.*\n.*the constraint at constraints.2 is called 'kl' too"):
        parse_spec(twice)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Right", "the names 'Right' and 'right' differ in case only"),
        ("right_low", "the name 'right_low' would clash with a column of 'right'"),
        ("kl", "a reward must not be called 'kl'"),
        ("a.b", "must be a string that matches"),
    ],
)
def test_names_become_columns(name: str, message: str) -> None:
    text = SPEC.replace("{right: 1.0, near: {grid: [0.5, 1]}}", "equal").replace(
        "name: near", f"name: {name}"
    )
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "demo.yaml")
    assert str(caught.value).startswith("demo.yaml, line 18, column 11: constraints.1.name")
    assert message in str(caught.value)


def test_too_many_trials() -> None:
    seeds = f"seeds: {list(range(20_000))}"
    with pytest.raises(SpecError, match="make 160,000 trials; at most 100,000"):
        parse_spec(SPEC.replace("seeds: [0, 1]", seeds).replace("[0.5, 1]}", "[0.1, 0.2, 0.3, 0.5, 1, 2]}"))


def test_too_many_seeds_are_refused_before_they_are_read() -> None:
    text = SPEC.replace("seeds: [0, 1]", "seeds:\n" + "".join(f"- {seed}\n" for seed in range(60_000)))
    first = text[: text.index("- 20000\n")].count("\n") + 1
    with pytest.raises(
        SpecError, match=f"line {first}, column 3\\s+is not valid YAML: a list of more than 20,000 entries"
    ):
        parse_spec(text)


def test_without_a_reward_there_is_nothing_to_do() -> None:
    start, end = SPEC.index("  - reward"), SPEC.index("  - kl")
    text = SPEC[:start] + SPEC[end:]
    start, end = text.index("methods:"), text.index("search:")
    with pytest.raises(SpecError, match="needs at least one reward"):
        parse_spec(text[:start] + text[end:])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=many", '--set training.steps=many: training.steps = "many"\n  must be an integer'),
        (
            "training.stepz=3",
            "--set training.stepz=3: training.stepz = 3\n  unknown key 'stepz'; did you mean",
        ),
        (
            "training={anneal: 0.2, average: 0.3}",
            "averages are taken while the rates fall: at most training.anneal, which is 0.2, got 0.3",
        ),
        ("constraints.7.at_most=3", "'7' is no item of the list; allowed: one of 0 to 2"),
        ("constraints.first=3", "'first' is no item of the list"),
        ("name.first=3", 'name is "demo", which has no parts'),
        ("training.steps", "must look like key.path=value"),
        ("=3", "must look like key.path=value"),
        ("training..steps=3", "must look like key.path=value"),
        ("name=", "is empty"),
        ("name=[1", "is not valid YAML"),
        ("name=.inf", "finite"),
        (
            "constraints=[{reward: x, at_least: .inf}]",
            "}]: constraints.0.at_least\n  a number must be finite",
        ),
        ("training={steps: 3, width: 0}", "--set training={steps: 3, width: 0}: training.width = 0"),
    ],
)
def test_override_messages_name_the_override(override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC, "demo.yaml", [override])
    assert str(caught.value).startswith(f"demo.yaml, --set {override}")
    assert message in str(caught.value)


def test_averages_last_no_longer_than_the_fall_of_the_rates_by_default() -> None:
    for anneal, average in ((0.6, 0.3), (0.3, 0.3), (0.1, 0.1)):
        assert parse_spec(SPEC, overrides=[f"training.anneal={anneal}"]).training.average == average


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: a\n\xff\xfe\x00")
    huge = tmp_path / "huge.yaml"
    huge.write_text("#" * 3_000_000)
    empty = tmp_path / "empty.yaml"
    empty.touch()
    for path, message in [
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "directory"),
        (binary, "line 2: is not text in UTF-8"),
        (huge, "is larger"),
        (empty, "is empty"),
    ]:
        with pytest.raises(SpecError, match=message) as caught:
            load_spec(path)
        assert str(path) in str(caught.value)
    with pytest.raises(SpecError, match="null byte"):
        load_spec("a\0b")
