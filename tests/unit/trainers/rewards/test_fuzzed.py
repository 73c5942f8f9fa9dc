"""Servers of other dialects, and judges, that answer anything: a score, a mask, or one clear message."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reward_servers import answering

from trainers.failures import Unscored
from trainers.patience import VARIABLE
from trainers.rewards.served import reward as module
from trainers.rewards.served.judge import Judge
from trainers.rewards.served.reward import Http, Served

Told = list[tuple[int, bytes]]
CASES = 50
"""Of each of four kinds; with the 300 of our own protocol in ``test_served.py`` they are 500."""
GOOD = {
    "flow_factory": {"rewards": [0.5]},
    "unirl": {"results": [{"dots": {"dots": 0.5}}], "errors": [{}]},
    "yes": {
        "model": "eye",
        "choices": [
            {
                "message": {"content": "yes"},
                "logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": -0.1}]}]},
            }
        ],
    },
    "number": {"model": "eye", "choices": [{"message": {"content": "7 of 10"}}]},
}

texts = st.text(alphabet=st.characters(), max_size=6)  # lone surrogates and controls among them
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 12),
    st.integers(min_value=10**300, max_value=10**400),
    st.floats(),
    st.floats(-1, 0),
    texts,
    st.sampled_from(["yes", "No.", "7", "7.5!", "dots", "eye", "1" * 400]),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.one_of(texts, st.sampled_from(["dots", "content"])), inner, max_size=2),
    ),
    max_leaves=4,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every part of a document."""
    yield path
    if isinstance(document, dict | list):
        for key, inner in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(inner, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return the document with another part."""
    if not path:
        return value
    found = dict(document) if isinstance(document, dict) else list(document)
    found[path[0]] = changed(found[path[0]], path[1:], value)
    return found


def replies(kind: str) -> st.SearchStrategy[tuple[int, bytes]]:
    """Answers that are right but for a part, cut off, of another status, or nothing at all."""
    good = GOOD[kind]
    broken = st.builds(
        lambda path, value: json.dumps(changed(good, path, value)).encode(),
        st.sampled_from(list(places(good))),
        values,
    )
    whole = json.dumps(good).encode()
    bodies = st.one_of(
        broken,
        broken,
        st.just(whole),
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        st.binary(max_size=20),
        values.map(lambda value: json.dumps({"error": value}).encode()),
    )
    return st.tuples(st.sampled_from([200, 200, 200, 200, 301, 404, 500]), bodies)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38


def read(kind: str, status: int, body: bytes) -> float | None:
    """Return the score of an answer as its page has it, NaN of none, or None of what is no answer; read anew."""
    try:
        document = json.loads(body, parse_constant=lambda _: 1 / 0)
        score = {"flow_factory": listed, "unirl": rated, "yes": chance, "number": rubric}[kind](document)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None
    if status != 200 or not (score is None or number(score)):
        return None
    return math.nan if score is None else float(score)


def listed(document: Any) -> Any:
    (score,) = document["rewards"]
    if document.get("error") or not isinstance(document["rewards"], list):
        raise ValueError
    return score


def rated(document: Any) -> Any:
    errors = document.get("errors") or [{}]
    (result,), (error,) = document["results"], errors
    if not all(isinstance(each, list) for each in (errors, document["results"])):
        raise ValueError
    if not all(isinstance(each, dict) for each in (result, error)):
        raise ValueError
    if "dots" in error:
        return None
    (score,) = [result["dots"]["dots"]] if "dots" in result["dots"] else result["dots"].values()
    return score


def said(document: Any) -> tuple[dict[str, Any], str]:
    choice = document["choices"][0]
    content = choice["message"]["content"] or ""
    if document["model"] != "eye" or not isinstance(content, str):
        raise ValueError
    return choice, content


def rubric(document: Any) -> float | None:
    rest = said(document)[1].lstrip()
    end = int(rest[:1] in {"+", "-"})
    while end < len(rest) and (rest[end].isdecimal() or (rest[end] == "." and "." not in rest[:end])):
        end += 1
    try:
        value = float(rest[:end].rstrip("."))
    except ValueError:
        return None
    return value if 1 <= value <= 10 else None


def chance(document: Any) -> float | None:
    choice, mass = said(document)[0], {"yes": 0.0, "no": 0.0}
    for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
        level, word = entry["logprob"], entry["token"].strip().strip(".\"'").lower()
        if isinstance(level, bool) or not isinstance(level, int | float) or level > 0.01:
            raise ValueError
        if word in mass:
            mass[word] += math.exp(level)
    return mass["yes"] / sum(mass.values()) if sum(mass.values()) >= 0.5 else None


def made(kind: str, url: str) -> Served:
    if kind in {"yes", "number"}:
        return Judge(url=url, model="eye", answer=kind, missing=0.99)
    return Http(url=url, name="dots", dialect=kind, missing=0.99)


@pytest.fixture(scope="module", params=list(GOOD))
def fuzzed(request: pytest.FixtureRequest) -> Iterator[tuple[str, Served, Told]]:
    """A kind of server, a reward that it gives, and what it answers next."""
    kind, told = request.param, [(200, json.dumps(GOOD[request.param]).encode())]

    def reply(path: str, _: dict[str, Any]) -> bytes | tuple[int, bytes]:
        return {"/health": b"{}", "/rewards": b'{"rewards": ["dots"]}'}.get(path, told[-1])

    with pytest.MonkeyPatch.context() as patch, answering(reply) as url:
        patch.setenv(VARIABLE, "0")
        patch.delenv("CDSWEEP_REWARD_TOKEN", raising=False)
        yield kind, made(kind, url), told


@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_servers_of_others_and_judges_answer(
    data: st.DataObject, fuzzed: tuple[str, Served, Told]
) -> None:
    kind, reward, told = fuzzed
    module._known.clear()
    reward.counts, reward.why_missing = (0, 0), None
    told.append(data.draw(replies(kind)))
    expected = read(kind, *told[-1])
    picture = torch.full((1, 3, 8, 8), 0.25)
    if expected is None:
        with pytest.raises(Unscored) as caught:
            reward(picture)
        plain(str(caught.value))
        return
    found = reward(picture)
    torch.testing.assert_close(
        found, torch.tensor([expected], dtype=torch.float32), rtol=1e-6, atol=0, equal_nan=True
    )
    assert reward.counts == (int(math.isnan(expected)), 1)
    plain(reward.why_missing or "nothing")


def plain(message: str) -> None:
    """Check that a message is one line that any terminal and file takes."""
    assert message.isprintable()
    assert 0 < len(message) < 400
    message.encode()
