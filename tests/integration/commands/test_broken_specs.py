"""Broken specs, by the thousand: a SpecError that names the file, and nothing else, ever."""

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.plan import Plan, make_plan
from orchestrator.spec.load import dump_spec, load_spec, parse_spec

VALID = """\
name: demo
model:
  mixture:
    weights: [0.5, 0.5]
    means: [[-1.0, 0.0], [1.5, 0.5]]
    covariances: [[[0.3, 0.0], [0.0, 0.3]], [[0.4, 0.1], [0.1, 0.2]]]
sampling: {steps: 20, eta: 1.0}
objective: {kl: pretrained}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.6, 1.0]}, unit: absolute}
  - {reward: {quadratic: {center: [1.0, 1.0], scale: 0.5}}, name: near, at_least: "+10%", unit: relative}
  - {kl: pretrained, at_most: 20}
methods:
  - constrained
  - weighted: {weights: {right: 1.0, near: {grid: [0.5, 1]}}, scale: 0.3}
search: {kind: grid}
seeds: [0, 1]
training: {steps: 100, precision: fp32, primal: reward_backprop, learning_rate: 1.0e-3}
duals: {kind: ascent, start: preview, paired: true}
convergence: {window: 10}
evaluation: {every: 20, images: 64}
resources: {workers: 2, gpus_per_worker: 0, concurrent_trials: auto}
storage: results
"""
PIPELINE = """\
name: demo
model:
  pretrained: embedded
  lora: {rank: 4, alpha: 4, targets: [to_q, to_k]}
prompts: {train: shapes, evaluate: [a cat, a dog]}
sampling: {steps: 15, eta: 1.0, guidance: 5.0, rest: 2}
objective: {kl: pretrained}
constraints:
  - {reward: clip, at_least: 0.15, unit: sigma}
  - {reward: {saturation: {aim: low}}, name: muted, at_least: {grid: [0.25, 0.5]}, unit: sigma}
  - {kl: pretrained, at_most: 20}
methods:
  - constrained
  - weighted: {weights: {clip: 1.0, muted: {grid: [0.5, 1]}}, scale: 0.3}
search: {kind: grid}
seeds: [0, 1]
training: {steps: 100, precision: bf16, primal: truncated_backprop, primal_parameters: {steps: 2, random: true}}
duals: {kind: nu_pi}
evaluation: {every: 20, images: 64, baseline_images: 128}
resources: {workers: 2, gpus_per_worker: 1}
"""
NETWORKS = """\
name: demo
models:
  vivid: {adapter: saturation, rewards: [saturation, {brightness: {aim: low}}]}
  crisp: {adapter: contrast, rewards: [muted]}
  cat: {prompt: a cat, rewards: [clip, hpsv2]}
  dog: {prompt: a dog}
  other: {pretrained: embedded}
model: {pretrained: embedded}
prompts: {train: shapes, evaluate: [a cat, a dog]}
objective: {minmax_kl: [vivid, crisp, cat, dog], direction: reverse, sampler: score, offsets: {cat: 0.1}}
constraints:
  - {reward: {saturation: {aim: low}}, name: muted, at_least: {grid: [-0.5, -0.4]}}
  - {reward: clip_least, at_least: 0.2}
methods:
  - constrained
  - weighted: {weights: {vivid: {grid: [0.5]}, cat: 0.5}, sampler: fkc}
distillation: {steps: 10, lora: {rank: 2}}
sampling: {steps: 8, guidance: 3.0}
"""
DATA: dict[str, Any] = yaml.safe_load(VALID)
PIPELINE_DATA: dict[str, Any] = yaml.safe_load(PIPELINE)
NETWORKS_DATA: dict[str, Any] = yaml.safe_load(NETWORKS)
Keys = tuple[str | int, ...]

fast = settings(
    max_examples=70, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
thorough = settings(parent=fast, max_examples=800)

# Strategies ------------------------------------------------------------------------------------------

words = st.sampled_from(
    [
        "right",
        "near",
        "linear",
        "quadratic",
        "kl",
        "pretrained",
        "grid",
        "equal",
        "weighted",
        "constrained",
        "auto",
        "preview",
        "reward",
        "at_least",
        "at_most",
        "unit",
        "sigma",
        "yes",
        "+50%",
        "1e3",
        "name",
        "weights",
        "scale",
        "minmax_kl",
        "mixture",
        "embedded",
        "prompts",
        "train",
        "shapes",
        "clip",
        "saturation",
        "rest",
        "adam_8bit",
        "low_variance",
        "models",
        "adapter",
        "prompt",
        "vivid",
        "clip_cat",
        "merged",
        "joint",
        "forward",
        "digest",
        "distillation",
    ]
)
text = words | st.text(max_size=8)
numbers = (
    st.integers(-3, 3)
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.sampled_from([0, 1, -1, 0.5, 1e308, 1e-308, 2**63, 2**53 + 1, float("nan"), float("inf")])
)
junk = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def _paths(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """Yield the path of every value inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _paths(item, (*path, key))


def _at(data: Any, path: Keys) -> Any:
    for part in path:
        data = data[part]
    return data


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Return a valid spec with one to three keys, values, types or parts of its structure changed."""
    data = copy.deepcopy(draw(st.sampled_from([DATA, PIPELINE_DATA, NETWORKS_DATA])))
    for _ in range(draw(st.integers(1, 3))):
        paths = list(_paths(data))
        if not paths:
            break
        path = draw(st.sampled_from(paths))
        parent, key = _at(data, path[:-1]), path[-1]
        _change(draw, parent, key, [_at(data, other) for other in paths])
    return data


def _change(draw: st.DrawFn, parent: Any, key: Any, values: list[Any]) -> None:
    """Change the item ``key`` of a mapping or list; ``values`` are those found in the spec."""
    value = parent[key]
    parts = [*value] if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else []
    replacement = (
        junk
        | st.sampled_from(values).map(copy.deepcopy)
        | st.sampled_from([[value], {"grid": [value]}, {"grid": value}, *parts])
    )
    change = draw(st.sampled_from(["replace", "replace", "replace", "delete", "append", "rename"]))
    if change == "replace":
        parent[key] = draw(replacement)
    elif change == "delete":
        del parent[key]
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(value))
    else:
        parent[draw(text)] = parent.pop(key) if change == "rename" else draw(junk)


@st.composite
def corrupted(draw: st.DrawFn) -> bytes:
    """Return the text of a valid spec with some of its bytes cut, doubled or replaced."""
    content = draw(st.sampled_from([VALID, PIPELINE, NETWORKS])).encode()
    fragments = st.sampled_from(
        [
            b"\t",
            b"\n",
            b"\x00",
            b"\xff",
            b"{",
            b"[",
            b"]",
            b"}",
            b": ",
            b"- ",
            b"&a ",
            b"*a",
            b"!!int ",
            b"<<: ",
            b"'",
            b'"',
            b"|",
            b"%",
            b"---\n",
            b"...\n",
            b"1e999",
            b".nan",
            b"\xed\xa0\x80",
            b"\xef\xbb\xbf",
            b"? ",
            b"#",
            b"\r",
            b"[" * 500,
            b"- " * 500,
            b"9" * 5000,
            b"name: again\n",
            b"\xc2\x85",
            b'"\\ud800"',
            b"!!python/name:os ",
        ]
    )
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from([0, 0, 1, 5, 40])))
        content = content[:start] + draw(fragments | st.just(b"") | st.binary(max_size=4)) + content[end:]
    return content


@st.composite
def certainly_broken(draw: st.DrawFn) -> Any:
    """Return a valid spec with one change that no spec can have."""
    data = copy.deepcopy(draw(st.sampled_from([DATA, PIPELINE_DATA, NETWORKS_DATA])))
    sections = [path for path in [(), *_paths(data)] if isinstance(_at(data, path), dict)]
    numeric = [path for path in _paths(data) if isinstance(_at(data, path), int | float)]
    nullable = {("sampling", "guidance"), ("model", "lora", "alpha")}
    # Without its constraints nothing is called muted, and without its base this composition has the shipped one.
    required = (
        ["name", "models", "objective", "constraints"]
        if "models" in data
        else ["name", "model", "constraints"]
    )
    change = draw(st.sampled_from(["key", "value", "type", "required", "number"]))
    if change == "key":
        parent = _at(data, draw(st.sampled_from(sections)))
        parent["zz_" + draw(st.text("abcdefgh", max_size=5))] = draw(junk)
    elif change == "number":
        path = draw(st.sampled_from([path for path in numeric if path not in nullable]))
        _at(data, path[:-1])[path[-1]] = draw(
            st.sampled_from([float("inf"), float("nan"), 1e300, 10**40, None, []])
        )
    elif change == "required":
        del data[draw(st.sampled_from(required))]
    elif change == "type":
        section = draw(st.sampled_from(sorted(data)))
        left_out = "models" in data and section in {"model", "distillation"}
        wrong = st.booleans() | st.floats(-3, 3)
        data[section] = draw(wrong if left_out else wrong | st.none())
    else:
        changes = [*WRONG, *(WRONG_PIPELINE if "prompts" in data else WRONG_MIXTURE)]
        path, value = draw(st.sampled_from(WRONG_NETWORKS if "models" in data else changes))
        _at(data, path[:-1])[path[-1]] = value
    return data


WRONG: list[tuple[Keys, Any]] = [
    (("sampling", "eta"), 0),
    (("seeds",), []),
    (("seeds",), [1, 1]),
    (("seeds",), [-1]),
    (("methods",), []),
    (("methods", 0), "weighted"),
    (("constraints",), []),
    (("constraints", 0, "at_least"), {"grid": []}),
    (("constraints", 0, "at_least"), "+50%"),
    (("constraints", 2, "kl"), "other"),
    (("constraints", 2, "at_most"), 0),
    (("objective",), {"reward": "nowhere"}),
    (("search", "kind"), "random"),
    (("training", "primal"), "magic"),
    (("duals", "kind"), "momentum"),
    (("storage",), ""),
    (("name",), "a/b"),
    (("seeds",), list(range(30_000))),
]
"""Changes that no spec can have."""
WRONG_MIXTURE: list[tuple[Keys, Any]] = [
    (("constraints", 0, "reward", "linear", "direction"), [1.0]),
    (("constraints", 0, "reward"), "right"),
    (("constraints", 1, "name"), "right"),
    (("methods", 1, "weighted", "weights", "right"), -1),
    (("model", "mixture", "weights"), [0.5, 0.6]),
    (("sampling", "rest"), 1),
    (("prompts",), {"train": "shapes", "evaluate": "shapes"}),
    (("model", "pretrained"), "embedded"),
    (("training", "optimizer"), "adam_8bit"),
    (("training", "primal_parameters"), {"steps": 1}),
    (("constraints", 0, "reward"), "clip"),
]
WRONG_PIPELINE: list[tuple[Keys, Any]] = [
    (("sampling", "rest"), 15),
    (("sampling", "steps"), 2),
    (("prompts", "train"), "shapez"),
    (("prompts", "train"), []),
    (("prompts", "evaluate", 1), "a cat"),
    (("prompts", "evaluate", 0), " "),
    (("prompts",), None),
    (("prompts",), "shapes"),
    (("model", "mixture"), DATA["model"]["mixture"]),
    (("model", "lora", "targets"), []),
    (("model", "revision"), "main"),
    (("training", "primal"), "low_variance"),
    (("training", "primal_parameters", "steps"), 0),
    (("resources", "gpus_per_worker"), -1),
    (("constraints", 0, "reward"), {"linear": {"direction": [1.0]}}),
    (("constraints", 0, "reward"), {"clip": {"modl": "a/b"}}),
    (("constraints", 1, "reward", "saturation", "aim"), "lower"),
]
WRONG_NETWORKS: list[tuple[Keys, Any]] = [
    (("models", "vivid", "adapter"), "saturatio"),
    (("models", "vivid", "adapter"), "."),
    (("models", "vivid", "digest"), "0" * 64),
    (("models", "vivid", "rewards"), "saturation"),
    (("models", "vivid", "rewards", 0), "cat"),
    (("models", "cat", "prompt"), " "),
    (("models", "cat", "adapter"), "saturation"),
    (("models", "cat", "rewards"), ["clip", "clip"]),
    (("models", "other", "revision"), "main"),
    (("models", "other"), {"mixture": DATA["model"]["mixture"]}),
    (("models",), {}),
    (("model",), DATA["model"]),
    (("model", "lora"), {}),
    (("prompts",), None),
    (("objective", "sampler"), "hmc"),
    (("objective", "sampler"), "merged"),
    (("objective", "direction"), "forward"),
    (("objective", "minmax_kl"), ["cat"]),
    (("objective",), {"kl": "pretrained"}),
    (("constraints", 0, "unit"), "sigma"),
    (("constraints", 1, "reward"), "clip_sun"),
    (("methods", 1, "weighted", "sampler"), "joint"),
    (("methods", 1, "weighted", "weights", "cat"), 0.6),
    (("distillation", "steps"), 0),
    (("sampling", "rest"), 1),
    (("resources",), {"workers": 2}),
    (("seeds",), [1, 1]),
]


# Checks ----------------------------------------------------------------------------------------------


def _is_valid(content: bytes, overrides: tuple[str, ...] = ()) -> bool:
    """Return whether a file with ``content`` is a valid spec; whatever is not must be a SpecError."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "broken.yaml"
        path.write_bytes(content)
        try:
            spec = load_spec(path, overrides)
        except SpecError as error:
            message = str(error)
            assert message.startswith(str(path)), message
            message.encode()  # it can be printed
            return False
    plan = make_plan(spec)
    assert plan.trials
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert parse_spec(dump_spec(spec)) == spec
    return True


def _as_text(data: Any) -> bytes:
    # YAML and JSON escape what they must; half a surrogate pair cannot be encoded otherwise.
    return json.dumps(data).encode()


def _check_cli(content: bytes) -> None:
    """Check that ``cdsweep plan`` refuses a file with ``content``: exit code 2 and no traceback."""
    cli = pytest.importorskip("orchestrator.cli")
    testing = pytest.importorskip("typer.testing")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "broken.yaml"
        path.write_bytes(content)
        result = testing.CliRunner().invoke(cli.app, ["plan", str(path)])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output


def test_the_unbroken_spec_is_valid() -> None:
    assert _is_valid(VALID.encode())
    assert _is_valid(_as_text(DATA))
    assert _is_valid(PIPELINE.encode())
    assert _is_valid(_as_text(PIPELINE_DATA))
    assert _is_valid(NETWORKS.encode())
    assert _is_valid(_as_text(NETWORKS_DATA))


@fast
@given(mutated())
def test_mutated(data: Any) -> None:
    _is_valid(_as_text(data))


@fast
@given(corrupted() | st.binary(max_size=200))
def test_corrupted(content: bytes) -> None:
    _is_valid(content)


@fast
@given(certainly_broken())
def test_certainly_broken(data: Any) -> None:
    assert not _is_valid(_as_text(data))


@fast
@given(
    st.lists(
        text
        | st.builds(
            "{}={}".format,
            st.sampled_from(
                [
                    ".".join(map(str, p))
                    for p in [*_paths(DATA), *_paths(PIPELINE_DATA), *_paths(NETWORKS_DATA)]
                ]
            ),
            text,
        )
    ),
    st.sampled_from([VALID, PIPELINE, NETWORKS]),
)
def test_overrides(overrides: list[str], valid: str) -> None:
    _is_valid(valid.encode(), tuple(overrides))


@settings(parent=fast, max_examples=15)
@given(certainly_broken())
def test_the_command_refuses(data: Any) -> None:
    _check_cli(_as_text(data))


@pytest.mark.slow
@pytest.mark.exhaustive
@thorough
@given(mutated())
def test_mutated_thoroughly(data: Any) -> None:
    _is_valid(_as_text(data))


@pytest.mark.slow
@pytest.mark.exhaustive
@thorough
@given(corrupted() | st.binary(max_size=2000))
def test_corrupted_thoroughly(content: bytes) -> None:
    _is_valid(content)


@pytest.mark.slow
@pytest.mark.exhaustive
@thorough
@given(certainly_broken())
def test_certainly_broken_thoroughly(data: Any) -> None:
    assert not _is_valid(_as_text(data))


@pytest.mark.slow
@pytest.mark.exhaustive
@settings(parent=fast, max_examples=100)
@given(certainly_broken())
def test_the_command_refuses_thoroughly(data: Any) -> None:
    _check_cli(_as_text(data))
