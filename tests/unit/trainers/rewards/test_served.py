"""Rewards that servers give: the protocol, the shipped server as a process, and servers that answer anything else."""

import asyncio
import base64
import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.reward_servers import TOKEN, Process, Reply, answering, offers, scoring, slowly

from orchestrator.commands import serving
from orchestrator.errors import UsageError
from orchestrator.plan import base_config
from orchestrator.spec.load import parse_spec
from trainers.config import PromptsConfig
from trainers.failures import Unscored
from trainers.patience import VARIABLE
from trainers.rewards.attributes import Brightness, GlobalContrast, Saturation
from trainers.rewards.clip import ClipScore
from trainers.rewards.grouped import Grouped
from trainers.rewards.served import reward as module
from trainers.rewards.served.protocol import TOKEN as VARIABLE_OF_TOKEN
from trainers.rewards.served.protocol import image_of, png_of
from trainers.rewards.served.reward import Http, metadata_of
from trainers.rewards.served.server import Served, application
from trainers.testing import check_reward

SPEC = """\
name: serve
model: {pretrained: embedded}
prompts: {train: prompts.jsonl, evaluate: prompts.jsonl}
constraints:
  - {reward: {saturation: {aim: high}}, name: colour, at_least: 0.5, unit: sigma}
  - {reward: clip, at_least: 0.15, unit: sigma}
  - {reward: brightness, at_least: 0.1, unit: sigma, where: {tag: light}}
rewards: [{reward: global_contrast, name: judge}]
"""
MIXTURE = """\
name: points
model: {mixture: {weights: [1.0], means: [[0.0]], covariances: [[[1.0]]]}}
constraints: [{reward: {linear: {direction: [1.0]}}, name: right, at_least: 0.5, unit: sigma}]
"""
TAGGED = """\
{"prompt": "a large red circle", "tag": "light"}
{"prompt": "a small blue square", "tag": "dark"}
"""
PROMPTS = ["a large red circle on a blue background", "a small cyan moon on a pink background"] * 10


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience, and no score of an earlier test."""
    monkeypatch.setenv(VARIABLE, "0")
    monkeypatch.delenv(VARIABLE_OF_TOKEN, raising=False)
    module._known.clear()


def images(count: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


# The shipped server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    spec = tmp_path_factory.mktemp("served") / "spec.yaml"
    spec.write_text(SPEC)
    (spec.parent / "prompts.jsonl").write_text(TAGGED)
    process = Process(spec)
    yield process
    process.kill()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE_OF_TOKEN, TOKEN)


@pytest.mark.slow
def test_a_served_reward_is_the_direct_one_to_the_rounding_of_its_pixels(
    served: Process, token: None
) -> None:
    drawn = images()
    rounded = (drawn * 255).round() / 255
    colour = Http(url=served.url, name="colour", batch=8)
    torch.testing.assert_close(colour(drawn), Saturation()(rounded), rtol=0, atol=1e-6)
    assert (colour(drawn) - Saturation()(drawn)).abs().max() < 2 / 255
    match, direct = Http(url=served.url, name="clip", batch=3), ClipScore(model="embedded")
    torch.testing.assert_close(match(drawn, PROMPTS), direct(rounded, PROMPTS), rtol=1e-4, atol=1e-5)
    assert colour.version != match.version
    check_reward(match, drawn[:4], PROMPTS[:4])


@pytest.mark.slow
def test_rewards_of_groups_and_judges_are_served_for_any_prompt(served: Process, token: None) -> None:
    drawn = images(3)
    rounded = (drawn * 255).round() / 255
    for name, direct in (("brightness[light]", Brightness()), ("judge", GlobalContrast())):
        asked = Http(url=served.url, name=name, missing=0.0)
        torch.testing.assert_close(asked(drawn, PROMPTS[:3]), direct(rounded), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_shipped_server_asks_for_its_token(served: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    for given_token in ("", "wrong"):
        monkeypatch.setenv(VARIABLE_OF_TOKEN, given_token)
        with pytest.raises(Unscored, match=r"refuses /rewards \(401\): set CDSWEEP_REWARD_TOKEN"):
            Http(url=served.url, name="colour")


@pytest.mark.slow
def test_a_reward_that_is_not_there_is_named_with_those_that_are(served: Process, token: None) -> None:
    with pytest.raises(
        Unscored,
        match=r"no reward 'color' \(did you mean 'colour'\?\); it has: brightness\[light\], clip, colour, judge",
    ):
        Http(url=served.url, name="color")


def test_a_reward_that_fails_is_told_to_who_asks() -> None:
    def failing(*_: Any) -> torch.Tensor:
        raise RuntimeError("no room on the card")

    served = application({"dots": Served(reward=failing, version="1")})
    image = base64.b64encode(png_of(images(1)[0])).decode()
    question = {"reward": "dots", "images": [image], "prompts": ["a"]}

    async def ask() -> tuple[int, Any]:
        async with TestClient(TestServer(served)) as client:
            answer = await client.post("/score", json=question)
            return answer.status, await answer.json()

    assert asyncio.run(ask()) == (500, {"error": "RuntimeError: no room on the card"})


def test_rewards_of_points_are_not_served() -> None:
    spec = parse_spec(MIXTURE)
    with pytest.raises(UsageError, match=r"'right' \(linear\) scores points of a mixture"):
        serving._served(base_config(spec), ())


# What is asked ----------------------------------------------------------------------------------------


def ones(question: dict[str, Any]) -> dict[str, Any]:
    return {"scores": [1.0] * len(question["images"]), "version": "1"}


def test_a_question_has_images_of_8_bits_prompts_and_metadata() -> None:
    asked: list[dict[str, Any]] = []
    prompts = PromptsConfig(
        train=("a", "b", "a"),
        evaluate=("c",),
        train_metadata={"tag": ("text", None, "text"), "place": ("1", "2", "3")},
        evaluate_metadata={"tag": ("photo",)},
    )
    assert metadata_of(prompts) == {"a": {"tag": "text"}, "b": {"place": "2"}, "c": {"tag": "photo"}}
    with answering(scoring(lambda question: asked.append(question) or ones(question))) as url:
        reward = Http(url=url + "/", name="dots", batch=3)
        reward.describe(prompts)
        drawn = images(7)
        assert reward(drawn, ["a", "b", "c", "d", "a", "b", "c"]).tolist() == [1.0] * 7
    assert sorted(len(question["images"]) for question in asked) == [1, 3, 3]
    assert {tuple(sorted(question)) for question in asked} == {("images", "metadata", "prompts", "reward")}
    told = {
        prompt: metadata
        for question in asked
        for prompt, metadata in zip(question["prompts"], question["metadata"], strict=True)
    }
    assert told == {"a": {"tag": "text"}, "b": {"place": "2"}, "c": {"tag": "photo"}, "d": {}}
    (first,) = [question for question in asked if question["prompts"][:2] == ["a", "b"]]
    assert torch.equal(image_of(first["images"][0]), (drawn[0] * 255).round() / 255)


def test_an_image_is_asked_about_once() -> None:
    count = Counter[str]()

    def score(question: dict[str, Any]) -> dict[str, Any]:
        count.update(zip(question["prompts"], question["images"], strict=True))
        return ones(question)

    with answering(scoring(score)) as url:
        reward, drawn = Http(url=url, name="dots"), images(4)
        reward(torch.cat([drawn, drawn]), ["a"] * 8)
        reward(drawn, ["a"] * 4)
        reward(drawn, ["b"] * 4)
        Http(url=url, name="dots")(drawn, ["b"] * 4)
    assert len(count) == 8
    assert set(count.values()) == {1}


def test_a_noisy_score_is_the_mean_of_several() -> None:
    asked: Counter[str] = Counter()

    def noisy(question: dict[str, Any]) -> dict[str, Any]:
        scores: list[float | None] = []
        for image in question["images"]:
            scores.append([1.0, None, 4.0, 7.0][asked[image]])
            asked[image] += 1
        return {"scores": scores, "version": "1"}

    with answering(scoring(noisy)) as url:
        reward = Http(url=url, name="dots", batch=3, repeats=4, missing=0.5)
        assert reward(images(5)).tolist() == [4.0] * 5, "of the three that there are"
        assert set(asked.values()) == {4}
        assert reward(images(5)).tolist() == [4.0] * 5, "and they are kept"
        assert set(asked.values()) == {4}
        assert reward.counts == (0, 5)
        assert reward.noise.tolist() == pytest.approx([3.0 / math.sqrt(3)] * 5), "1, 4 and 7 tell it"


def test_standard_errors_of_the_server_are_those_of_scores_that_were_asked_for_once() -> None:
    errors = iter([[0.5, None, 0.25], [0.75], [None, 1.5]])

    def score(question: dict[str, Any]) -> dict[str, Any]:
        return ones(question) | {"standard_errors": next(errors)}

    with answering(scoring(score)) as url:
        reward, drawn = Http(url=url, name="dots"), images(4)
        reward(drawn[:3])
        assert reward.noise[[0, 2]].tolist() == [0.5, 0.25]
        assert reward.noise[1].isnan()
        reward(drawn[[3, 0]])
        assert reward.noise.tolist() == [0.75, 0.5], "they are kept with the scores"
        grouped = Grouped(reward, frozenset({"a"}))
        grouped(drawn[[0, 1, 2]], ["b", "a", "a"])
        assert grouped.noise.isnan().tolist() == [True, True, False]
        assert grouped.noise[2] == 1.5
        grouped(drawn[:2], ["b", "b"])
        assert grouped.noise.isnan().tolist() == [True, True]


def test_no_more_requests_at_a_time_than_allowed() -> None:
    now, most = [0], [0]

    def score(question: dict[str, Any]) -> dict[str, Any]:
        now[0] += 1
        most[0] = max(most[0], now[0])
        found = slowly(0.05)(question)
        now[0] -= 1
        return found

    with answering(scoring(score)) as url:
        Http(url=url, name="dots", batch=1, concurrency=3)(images(12))
    assert 1 < most[0] <= 3


# Servers that are not as they should be ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"higher_is_better": False}, "lower is better"),
        ({"version": "2"}, "has version '2' of 'dots', and the spec says version: 1"),
        ({"version": 3}, "'version' is no text"),
        ({"higher_is_better": None}, "neither true nor false"),
    ],
)
def test_a_reward_is_looked_at_before_it_is_used(entries: dict[str, Any], message: str) -> None:
    with answering(lambda *_: offers(**entries)) as url, pytest.raises(Unscored, match=re.escape(message)):
        Http(url=url, name="dots", version="1")


def test_another_version_in_the_middle_is_an_error() -> None:
    versions = iter(["1", "1", "2"])
    with answering(scoring(lambda q: ones(q) | {"version": next(versions)})) as url:
        reward = Http(url=url, name="dots", concurrency=1)
        reward(images(2, 1))
        reward(images(2, 2))
        with pytest.raises(Unscored, match="it scored 'dots' by version '1', and now by '2'"):
            reward(images(2, 3))


def test_what_was_answered_is_not_asked_again_where_the_server_fails_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "60")
    asked, failures = Counter[str](), iter([False, True, False, True, True])

    def score(question: dict[str, Any]) -> Any:
        if next(failures, False):
            return 503, b"later"
        asked.update(question["images"])
        return ones(question)

    with answering(scoring(score)) as url:
        assert Http(url=url, name="dots", batch=1, concurrency=1)(images(4)).tolist() == [1.0] * 4
    assert set(asked.values()) == {1}


@pytest.mark.parametrize("date", [False, True])
def test_a_server_that_asks_for_patience_is_left_alone_for_as_long(
    monkeypatch: pytest.MonkeyPatch, date: bool
) -> None:
    monkeypatch.setenv(VARIABLE, "60")
    asked = list[float]()

    def score(question: dict[str, Any]) -> Any:
        asked.append(time.monotonic())
        if len(asked) == 1:
            at = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
            return 429, b"busy", {"Retry-After": at if date else "2"}
        return ones(question)

    with answering(scoring(score)) as url:
        assert Http(url=url, name="dots")(images(1)).tolist() == [1.0]
    assert asked[1] - asked[0] >= 1.9, "a first wait is at most half a second"


def test_what_the_same_request_meets_again_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "600")
    with answering(scoring(lambda _: (422, b"{}"))) as url:
        with pytest.raises(Unscored, match=r"refuses a request: /score answers 422") as error:
            Http(url=url, name="dots")(images(1))
        assert "tried again" not in str(error.value)


def test_a_slow_server_is_given_up_in_time() -> None:
    with answering(scoring(slowly(2.0))) as url:
        reward = Http(url=url, name="dots", timeout=0.3)
        with pytest.raises(Unscored, match=r"no answer within 0.3 s \(tried again for 0 s\)"):
            reward(images(1))


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Content-Encoding": "gzip"}, "Can not decode content-encoding: gzip"),
        ({"Content-Length": "9"}, "Not enough data to satisfy content length header"),
    ],
)
def test_an_answer_that_is_no_http_is_told_in_its_own_words(headers: dict[str, str], message: str) -> None:
    with answering(scoring(lambda _: (200, b"scores", headers))) as url:
        reward = Http(url=url, name="dots")
        with pytest.raises(Unscored, match=re.escape(f"cannot score 1 images by 'dots': {message}")):
            reward(images(1))


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with answering(scoring(ones)) as url:
        pass
    with pytest.raises(Unscored, match=f"the reward server at {url} cannot ask for its rewards: "):
        Http(url=url, name="dots")


def test_a_score_that_is_null_is_missing_and_had_another_time() -> None:
    answers = iter([[None, 0.5], [0.25]])

    def score(_: dict[str, Any]) -> dict[str, Any]:
        scores = next(answers)
        errors = ["no text found" if score is None else None for score in scores]
        return {"scores": scores, "errors": errors, "version": "1"}

    with answering(scoring(score)) as url:
        reward, drawn = Http(url=url, name="dots"), images(2)
        first = reward(drawn)
        assert first.isnan().tolist() == [True, False]
        assert (reward.counts, reward.why_missing) == ((1, 2), "no text found")
        assert reward(drawn).tolist() == [0.25, 0.5]
        assert reward.counts == (1, 3)


@pytest.mark.parametrize(("missing", "fails"), [(0.0, 1), (0.1, 7), (0.5, 33)])
def test_more_missing_scores_than_allowed_are_an_error_with_its_cause(missing: float, fails: int) -> None:
    def score(question: dict[str, Any]) -> dict[str, Any]:
        count = len(question["images"])
        return {"scores": [None] * count, "errors": ["unreadable"] * count, "version": "1"}

    with answering(scoring(score)) as url:
        reward = Http(url=url, name="dots", missing=missing)
        if fails > 1:
            assert reward(images(fails - 1)).isnan().all()
        message = (
            rf"no score of 'dots' for {fails} of {fails} images, .* {missing:g} may be missing: unreadable"
        )
        with pytest.raises(Unscored, match=message):
            reward(images(1, seed=9))


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**400),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
answers = st.fixed_dictionaries(
    {},
    optional={
        "scores": st.one_of(
            values, st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(values, max_size=4)
        ),
        "version": st.one_of(st.just("1"), values),
        "errors": st.one_of(st.none(), st.lists(values, max_size=4)),
        "standard_errors": st.one_of(st.none(), st.lists(values, max_size=4)),
        "extra": values,
    },
)
bodies = st.one_of(
    answers.map(lambda document: json.dumps(document).encode()),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3).map(
        lambda scores: json.dumps({"scores": scores, "version": "1"}).encode()
    ),
    st.binary(max_size=40),
    values.map(lambda value: json.dumps(value).encode()),
    st.just(b"[" * 100_000),
    st.just(b'{"scores": [0.1, 0.2, 0.3], "version": "1"'),
)
replies = st.tuples(st.sampled_from([200, 200, 200, 201, 204, 301, 400, 404, 422, 429, 500, 503]), bodies)


def proper(status: int, body: bytes) -> list[float | None] | None:
    """Return the scores of an answer that is one of the protocol; an independent reading of it."""
    try:
        document = json.loads(body)
        scores = document["scores"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    lists = [document.get(key) for key in ("errors", "standard_errors")]
    good = (
        status == 200
        and document.get("version") == "1"
        and isinstance(scores, list)
        and all(each is None or (isinstance(each, list) and len(each) == 3) for each in lists)
        and all(isinstance(e, str | None) for e in lists[0] or [])
        and all(e is None or (_finite(e) and e >= 0) for e in lists[1] or [])
        and len(scores) == 3
        and all(s is None or _finite(s) for s in scores)
        and all(s is None or _finite(s) for s in document.values() if isinstance(s, float))
    )
    return scores if good else None


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 3.4e38 and not math.isnan(value)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[tuple[Http, list[tuple[int, bytes]]]]:
    """A reward, and what its server answers next."""
    told: list[tuple[int, bytes]] = []
    with pytest.MonkeyPatch.context() as patch, answering(scoring(lambda _: told[-1])) as url:
        patch.setenv(VARIABLE, "0")
        yield Http(url=url, name="dots"), told


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(reply=replies)
def test_whatever_a_server_answers_is_a_score_a_mask_or_one_clear_message(
    reply: tuple[int, bytes], fuzzed: tuple[Http, list[tuple[int, bytes]]]
) -> None:
    module._known.clear()
    reward, told = fuzzed
    told.append(reply)
    expected = proper(*reply)
    if expected is not None:
        reward.counts = (0, 0)
        scores = torch.tensor([math.nan if e is None else e for e in expected], dtype=torch.float32)
        torch.testing.assert_close(reward(images(3)), scores, rtol=0, atol=0, equal_nan=True)
        assert reward.counts == (expected.count(None), 3)
        return
    with pytest.raises(Unscored) as caught:
        reward(images(3))
    message = str(caught.value)
    assert reward._url in message
    assert "\n" not in message
    assert len(message) < 400


def test_what_servers_say_is_one_line_that_any_file_takes() -> None:
    wild = "\ud800 is\n\x1b[31mred"

    def score(question: dict[str, Any]) -> dict[str, Any]:
        return {"scores": [None], "errors": [wild], "version": "1"}

    with answering(scoring(score)) as url:
        reward = Http(url=url, name="dots")
        reward(images(1))
    assert reward.why_missing == "\N{REPLACEMENT CHARACTER} is \N{REPLACEMENT CHARACTER}[31mred"
    for entry in ({"version": wild}, {"name": "dots\n"}, {"version": "1" * 1000}):
        with (
            answering(lambda *_, entry=entry: offers(**entry)) as url,
            pytest.raises(Unscored, match="no text of one"),
        ):
            Http(url=url, name="dots")


# Servers of others ------------------------------------------------------------------------------------


def flow_factory(path: str, question: dict[str, Any]) -> bytes | tuple[int, bytes]:
    """A server of Flow-Factory's template: what it parses, and what FastAPI makes of an error in it."""
    if path == "/health":
        return json.dumps({"status": "ok"}).encode()
    if path != "/compute":
        return 404, b'{"detail": "Not Found"}'
    assert set(question) <= {"prompt", "image", "video", "condition_images", "condition_videos", "extra"}
    pictures = [image_of(text) for text in question["image"]]
    assert len(question["prompt"]) == len(pictures)
    if "poison" in question["prompt"]:
        return 500, b'{"detail": "CUDA out of memory"}'
    return json.dumps({"rewards": [float(picture.mean()) for picture in pictures]}).encode()


def unirl(path: str, question: dict[str, Any]) -> bytes | tuple[int, bytes]:
    """UniRL's reward service, of the rewards ``clip`` and ``unified_reward``, which has three metrics."""
    if path == "/health":
        return json.dumps({"status": "ok", "rewards": {"clip": ["ready"]}}).encode()
    if path == "/rewards":
        return json.dumps({"rewards": ["clip", "unified_reward"]}).encode()
    results: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    for request in question["requests"]:
        (turn,) = request["history"]
        assert set(turn) == {"text", "image_b64"}
        assert request["metadata"] in (None, {"tag": "text"})
        (name,) = request["required_rewards"]
        value = float(image_of(turn["image_b64"]).mean())
        metrics = {"clip": value} if name == "clip" else {"Alignment": value, "Style": 2.0, "Coherence": 3.0}
        broken = turn["text"] == "poison"
        results.append({} if broken else {name: metrics})
        errors.append({name: "OutOfMemoryError('CUDA')"} if broken else {})
    identities = [{"request_id": None, "scorer_version": None}] * len(results)
    document = {"results": results, "errors": errors, "identities": identities, "protocol_version": "1"}
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("reply", "dialect", "name"),
    [
        (flow_factory, "flow_factory", "brightness"),
        (unirl, "unirl", "clip"),
        (unirl, "unirl", "unified_reward/Alignment"),
    ],
)
def test_servers_of_others_are_asked_as_they_want_it(reply: Reply, dialect: str, name: str) -> None:
    prompts = PromptsConfig(train=("a",), evaluate=("b",), train_metadata={"tag": ("text",)})
    with answering(reply) as url:
        reward = Http(url=url, name=name, dialect=dialect, batch=3, version="of May")
        reward.describe(prompts)
        drawn = images(5)
        rounded = (drawn * 255).round() / 255
        torch.testing.assert_close(
            reward(drawn, ["a", "b", "a", "b", "a"]), rounded.mean(dim=(1, 2, 3)), rtol=0, atol=1e-6
        )
        assert reward.version == "of May"
        assert Http(url=url, name=name, dialect=dialect).version == "untold"


def test_what_others_cannot_score_is_no_number() -> None:
    with answering(unirl) as url:
        reward = Http(url=url, name="clip", dialect="unirl")
        assert reward(images(2), ["poison", "a"]).isnan().tolist() == [True, False]
        assert (reward.counts, reward.why_missing) == ((1, 2), "OutOfMemoryError('CUDA')")
        for name in ("unified_reward", "unified_reward/Beauty"):
            with pytest.raises(
                Unscored, match="has the metrics unified_reward/Alignment, unified_reward/Style"
            ):
                Http(url=url, name=name, dialect="unirl")(images(1))
        with pytest.raises(Unscored, match="no reward 'pick'; it has: clip, unified_reward"):
            Http(url=url, name="pick", dialect="unirl")
    with answering(flow_factory) as url:
        reward = Http(url=url, name="any", dialect="flow_factory")
        with pytest.raises(Unscored, match="/compute answers 500"):
            reward(images(1), ["poison"])


@pytest.mark.parametrize("dialect", ["flow_factory", "unirl"])
@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"rewards": [1.0, 2.0], "results": []},
        {"rewards": [True], "results": [{"clip": {"clip": "high"}}]},
        {"rewards": "1.0", "results": [{"clip": 1.0}]},
        {"rewards": None, "results": [{}], "errors": []},
        {"error": "no GPU", "results": [{"clip": {"clip": 1.0}}], "errors": [{}, {}]},
        b'{"rewards": [NaN], "results": [{"clip": {"clip": NaN}}]}',
        b"pickled",
        (503, b"later"),
    ],
)
def test_other_answers_of_others_are_none(dialect: str, answer: Any) -> None:
    def reply(path: str, question: dict[str, Any]) -> bytes | tuple[int, bytes]:
        if path in ("/compute", "/score"):
            return answer if isinstance(answer, bytes | tuple) else json.dumps(answer).encode()
        return unirl(path, question)

    with answering(reply) as url:
        reward = Http(url=url, name="clip", dialect=dialect)
        with pytest.raises(Unscored, match="cannot score 1 images by 'clip'"):
            reward(images(1))
