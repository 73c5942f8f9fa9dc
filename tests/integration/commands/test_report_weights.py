"""The sliders of a trial for all weights of a composition in a real browser: on the simplex, and figures follow."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright")

from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser
from support.browser import DESKTOP, MARKS, PHONE, keep, opened
from support.models.networks import ADAPTERS

from orchestrator.execution.trials.trial import record
from orchestrator.plan import make_job, make_plan
from orchestrator.report.page.write import write_report
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.config import BaselineStatistics, RewardStatistics
from trainers.types import Answer, Evaluation, Interval, TrialOutcome

pytestmark = MARKS
NAMES = ("vivid", "bright", "crisp")
WEIGHTS = ((0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def near(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.01, high=mean + 0.01)


def answer(place: int) -> Answer:
    """One that is farther from a model the less weight that has, its images as grey as its place."""
    kls = {name: near(0.1 + 0.5 * (1 - weight)) for name, weight in zip(NAMES, WEIGHTS[place], strict=True)}
    drawn = Evaluation(
        kl=np.full(4, np.nan),
        rewards={},
        seeds=np.arange(4),
        images=np.full((4, 8, 8, 3), 40 * place, dtype=np.uint8),
    )
    return Answer(
        thresholds={},
        multipliers=dict(zip(NAMES, WEIGHTS[place], strict=True)),
        kl=max(kls.values(), key=lambda kl: kl.mean),
        rewards={},
        violations={},
        feasible=True,
        images=4,
        constituents=kls,
        retention={"vivid": near(0.3 + 0.2 * place)},
        evaluation=drawn,
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    spec = parse_spec(
        ADAPTERS.replace("  - weighted: {weights: equal}", "  - frontier: {}\ndistillation: {}")
    )
    plan = make_plan(spec)
    trial = plan.trials[-1]
    known = {reward.name: RewardStatistics(mean=0.2, std=0.1) for reward in plan.base.rewards}
    baseline = BaselineStatistics(rewards=known, samples=None)
    store = SweepStore(str(tmp_path_factory.mktemp("results")), spec.name)
    store.create(dump_spec(spec), plan.to_json(), baseline.model_dump(mode="json"))
    answers = tuple(answer(place) for place in range(len(WEIGHTS)))
    outcome = TrialOutcome(
        status="succeeded",
        error=None,
        feasible=True,
        kl=answers[0].kl,
        kl_estimator="path_energy",
        rewards={},
        violations={},
        multipliers=answers[0].multipliers,
        weights={},
        steps=20,
        wall_seconds=3.0,
        evaluation=None,
        constituents=answers[0].constituents,
        sampler="fkc",
        answers=answers,
        history=(),
    )
    record(make_job(trial, baseline), outcome, store, started_at=datetime.now(UTC))
    return Path(write_report(store).path).as_uri()


def test_the_sliders_stay_on_the_simplex_and_figures_follow(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        own = page.locator("#composed input[type=range]")
        assert own.count() == 3
        told = page.locator("#composed .lead")

        def stands() -> list[int]:
            return [int(own.nth(place).input_value()) for place in range(3)]

        assert stands() == [50, 25, 25]
        assert "vivid 0.5" in told.inner_text()
        own.nth(2).focus()
        page.keyboard.press("End")
        assert stands() == [0, 0, 100]
        assert "crisp 1" in told.inner_text()
        assert page.evaluate("document.activeElement.dataset.model") == "crisp", "the focus stays"
        page.keyboard.press("Home")
        assert stands() == [50, 50, 0], "the others were 0, and share what is left"
        rows = page.locator("#composed tbody tr")
        assert rows.count() == 4
        rows.nth(1).get_by_role("button").click()
        assert stands() == [100, 0, 0]
        assert rows.nth(1).get_attribute("class") == "selected"
        assert "0.100" in rows.nth(1).inner_text()
        assert "50 %" in rows.nth(1).inner_text()
        alt = page.locator("#composed .strip img").last.get_attribute("alt") or ""
        assert "vivid 1.00" in alt
        page.reload()
        assert stands() == [100, 0, 0], "the address keeps it"


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_it_has_no_barrier(browser: Browser, address: str, size: tuple[int, int]) -> None:
    with opened(browser, address, size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out"
        found = Axe().run(page)
        assert not [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]]
        keep(page, f"weights-{size[0]}", "#composed")
