"""The sliders of a trial for a box of thresholds in a real browser: figures and images follow keyboard and mouse."""

import base64
import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright")

from axe_core_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page
from support.browser import DESKTOP, MARKS, PHONE, keep, opened

from orchestrator.execution.trials.trial import record
from orchestrator.frontier.problems import exact_baseline
from orchestrator.plan import base_config, make_job, make_plan
from orchestrator.report.page.document import report_document
from orchestrator.report.page.write import write_report
from orchestrator.results.store import SweepStore
from orchestrator.spec.load import dump_spec, parse_spec
from trainers.problem import run_trial
from trainers.trial_io import LocalTrialIO
from trainers.types import Answer, Evaluation

pytestmark = MARKS

SPEC = """
name: whole
model: {mixture: {weights: [1.0], means: [[0.0, 0.0]], covariances: [[[1.0, 0.0], [0.0, 1.0]]]}}
constraints:
  - {reward: {linear: {direction: [1.0, 0.0]}}, name: right, at_least: {grid: [0.2, 0.8]}}
  - {reward: {linear: {direction: [0.0, 1.0]}}, name: up, at_least: {grid: [0.1, 0.3]}}
methods: [frontier: {points: 4}]
sampling: {steps: 4}
training: {steps: 30, batch_per_worker: 64, width: 16, learning_rate: 1.0e-2}
evaluation: {images: 512, baseline_images: 512}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    """A trial whose answers have images of their own: as grey as they are many."""
    spec = parse_spec(SPEC)
    plan, baseline = make_plan(spec), exact_baseline(base_config(spec))
    assert baseline is not None
    store = SweepStore(str(tmp_path_factory.mktemp("results")), spec.name)
    store.create(dump_spec(spec), plan.to_json(), baseline.model_dump(mode="json"))
    job = make_job(plan.trials[0], baseline)
    outcome = run_trial(job, LocalTrialIO())
    answers = tuple(
        replace(
            answer,
            evaluation=replace(held(answer), images=np.full((4, 16, 16, 3), 40 * place, dtype=np.uint8)),
        )
        for place, answer in enumerate(outcome.answers)
    )
    record(job, replace(outcome, answers=answers), store, started_at=datetime.now(UTC))
    return store


def held(answer: Answer) -> Evaluation:
    assert answer.evaluation is not None
    return answer.evaluation


@pytest.fixture(scope="module")
def address(store: SweepStore) -> str:
    return Path(write_report(store).path).as_uri()


def grey(page: Page) -> int:
    """Which answer the images that are shown are of."""
    source = page.locator("#box .strip img").last.get_attribute("src") or ""
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        return round(float(np.asarray(picture.convert("L")).mean()) / 40)


def nearest(points: list[dict[str, Any]], right: float, up: float) -> int:
    def apart(place: int) -> float:
        found = points[place]["thresholds"]
        return float(((found["right"] - right) / 0.6) ** 2 + ((found["up"] - up) / 0.2) ** 2)

    return min(range(len(points)), key=apart)


def test_the_slider_moves_by_keyboard_and_mouse(browser: Browser, address: str, store: SweepStore) -> None:
    (box,) = report_document(store)["boxes"]
    points = box["points"]
    assert [point["thresholds"]["right"] for point in points[:2]] == [0.2, 0.8]
    with opened(browser, address) as page:
        sliders = page.get_by_role("slider", name="threshold of")
        own = page.locator("#box input[type=range]")
        assert own.count() == 2, "two thresholds move"
        assert sliders.count() >= 2
        slider = page.get_by_label("threshold of right", exact=True).and_(own)
        kl = page.locator("#box .kl")

        def follows() -> float:
            value = 0.2 + 0.006 * float(slider.input_value())
            place = nearest(points, value, 0.1 + 0.002 * float(own.nth(1).input_value()))
            assert grey(page) == place
            assert f"{points[place]['kl'][0]:.2g}"[:3] in (kl.text_content() or "")
            assert (slider.get_attribute("aria-valuetext") or "").startswith("right ≥ ")
            return value

        slider.focus()
        page.keyboard.press("Home")
        assert follows() == pytest.approx(0.2)
        first = kl.text_content()
        page.keyboard.press("End")
        assert follows() == pytest.approx(0.8)
        assert kl.text_content() != first
        page.keyboard.press("ArrowLeft")
        assert follows() == pytest.approx(0.794)
        assert page.evaluate("document.activeElement.dataset.threshold") == "right", "the focus stays"
        line = page.locator("#box .here").first
        before = line.get_attribute("x1")
        slider.scroll_into_view_if_needed()
        bounds = slider.bounding_box()
        assert bounds
        middle = bounds["y"] + bounds["height"] / 2
        page.mouse.click(bounds["x"] + bounds["width"] * 0.1, middle)
        assert follows() < 0.35
        assert (
            line.get_attribute("x1") != before
            or page.locator("#box .here").first.get_attribute("x1") != before
        )
        page.mouse.down()
        page.mouse.move(bounds["x"] + bounds["width"] * 0.7, middle, steps=4)
        page.mouse.up()
        held = follows()
        assert 0.5 < held < 0.7
        page.reload()
        assert 0.2 + 0.006 * float(slider.input_value()) == pytest.approx(held), "the address keeps it"


def test_the_trial_is_the_one_to_take_at_its_multipliers(
    browser: Browser, address: str, store: SweepStore
) -> None:
    document = report_document(store)
    (trial,) = document["trials"]
    with opened(browser, address) as page:
        assert f"Trial {trial['id']} answers for every threshold" in (page.text_content("#summary") or "")
        table = page.get_by_role("region", name="Figures of this trial")
        assert table.get_by_role("columnheader").last.text_content() == "multiplier"
        last = table.get_by_role("row").filter(has_text="right").locator("td").last.text_content() or ""
        assert float(last) == pytest.approx(trial["multipliers"]["right"], rel=0.01)


def test_the_surface_tells_both_bounds_and_moves_the_sliders(
    browser: Browser, address: str, store: SweepStore
) -> None:
    with opened(browser, address) as page:
        cells = page.locator("#box .surface .cell")
        assert cells.count() == 49
        for row, column in ((0, 0), (6, 0), (3, 5), (6, 6)):
            right, up = 0.2 + 0.1 * column, 0.1 + 0.2 / 6 * row
            cell = cells.nth(7 * row + column)
            least = float((cell.locator("text.least").text_content() or "").removeprefix("≥ "))
            exact = (right**2 + up**2) / 2
            assert least <= 1.02 * exact, "two digits are shown"
            if row == column:  # the ends of the box are among what was measured
                assert least == pytest.approx(exact, rel=0.02)
            said = cell.locator("title").text_content() or ""
            assert said.startswith(f"right ≥ {right:.3g}".rstrip("0")), said
        cells.nth(7 * 6 + 2).click()
        own = page.locator("#box input[type=range]")
        assert [own.nth(place).input_value() for place in (0, 1)] == ["33", "100"]
        here = page.locator("#box .surface .cell.here")
        assert here.count() == 1
        assert "right ≥ 0.4" in (here.locator("title").text_content() or "")
        assert "are needed (exact)" in (page.locator("#box .lead").text_content() or "")
        own.first.focus()
        page.keyboard.press("End")
        assert "right ≥ 0.8" in (here.locator("title").text_content() or "")


@pytest.mark.parametrize(("size", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_has_no_barrier(
    browser: Browser, address: str, size: tuple[int, int], name: str, scheme: str
) -> None:
    with opened(browser, address, size, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out"
        found = Axe().run(page)
        assert not [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]]
        keep(page, f"box-{name}-{scheme}", "#box")
