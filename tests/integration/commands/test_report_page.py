"""The report in a real browser: nothing on the console, keyboard and mouse, and the answers of `cdsweep pick`."""

import json
import re
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="the browser tests need playwright")

from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser, Download, Locator, Page
from support.browser import DESKTOP, MARKS, PHONE, keep, opened
from support.reported import MANY, noise_pictures, write_sweep
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.report.page.write import write_report
from orchestrator.results.store import SweepStore

pytestmark = MARKS


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SweepStore:
    return write_sweep(
        tmp_path_factory.mktemp("sweeps"), failed=2, prompts=True, pictures=noise_pictures(8, 32)
    )


@pytest.fixture(scope="module")
def address(store: SweepStore) -> str:
    return Path(write_report(store).path).as_uri()


SVG = "{http://www.w3.org/2000/svg}"
ISOLATED = """() => {
  const at = (node) => node.getAttribute("transform").match(/[-\\d.]+/g).map(Number);
  const nodes = [...document.querySelectorAll(".points [data-trial]")];
  const apart = (a, b) => (a === b ? Infinity : Math.hypot(at(a)[0] - at(b)[0], at(a)[1] - at(b)[1]));
  const room = (node) => Math.min(...nodes.map((other) => apart(node, other)));
  return nodes.sort((a, b) => room(b) - room(a))[0].dataset.trial;
}"""
"""The trial whose marker has the most room around it."""


def asked(store: SweepStore, *limits: str) -> dict[str, Any]:
    """What `cdsweep pick` answers."""
    result = CliRunner().invoke(app, ["pick", store.url(), *limits, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def middle(part: Locator) -> tuple[float, float]:
    """Where it is on the screen now."""
    box = part.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def shown(page: Page) -> dict[str, Any]:
    """What the page picks."""
    found: dict[str, Any] = page.evaluate("cdsweepReport.mounted.picked()")
    return found


@pytest.mark.parametrize(("size", "name"), [(DESKTOP, "desktop"), (PHONE, "phone")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_a_word_and_without_a_barrier(
    browser: Browser, address: str, size: tuple[int, int], name: str, scheme: str
) -> None:
    with opened(browser, address, size, color_scheme=scheme) as page:
        assert page.locator("h1").inner_text() == "demo"
        assert page.locator(".points [data-trial]").count() == 16
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out"
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = true; }")
        found = Axe().run(page)
        barriers = [
            (each["id"], each["impact"], [node["html"][:200] for node in each["nodes"][:3]])
            for each in found["violations"]
        ]
        assert not barriers
        for details in page.locator("details").all():
            details.evaluate("node => { node.open = false; }")
        keep(page, f"report-{name}-{scheme}")


def test_axes_switch_and_trials_are_filtered(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        label = page.locator("#frontier svg.chart > .axes .label").first
        assert label.text_content() == "right (reward units)"
        before = page.locator(".points [data-trial]").first.get_attribute("transform")
        page.select_option("#cdsweep-axis-x", "reward:near")
        assert label.text_content() == "near (reward units)"
        page.select_option("#cdsweep-axis-y", "reward:right")
        assert (
            page.locator("#frontier svg.chart > .axes .label").nth(1).text_content() == "right (reward units)"
        )
        assert page.locator(".points [data-trial]").first.get_attribute("transform") != before
        page.get_by_role("button", name="Swap axes").click()
        assert page.locator("#cdsweep-axis-x").input_value() == "reward:right"
        page.get_by_label("weighted", exact=True).uncheck()
        assert page.locator(".points .weighted").count() == 0
        assert page.locator("#trials tbody tr").count() == 12
        page.get_by_label("1", exact=True).uncheck()
        assert page.locator(".points .constrained").count() == 6


def test_a_trial_is_chosen_by_mouse(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        wanted = page.evaluate(ISOLATED)
        point = page.locator(f".points [data-trial='{wanted}']")
        point.scroll_into_view_if_needed()
        page.mouse.move(*middle(point))
        tip = page.get_by_role("tooltip")
        tip.wait_for()
        assert tip.locator(".id").inner_text() == wanted
        assert tip.locator("img").count() == 1
        assert "near" in tip.inner_text()
        assert re.search(r"[λw] ", tip.inner_text())
        keep(page, "report-tooltip", "#frontier")
        page.mouse.click(*middle(point))
        page.locator("#trial-title", has_text=wanted).wait_for()
        assert page.evaluate("document.activeElement.id") == "trial-title"
        assert f"selected%22%3A%22{wanted}" in page.url


def test_a_trial_is_chosen_by_keyboard_and_a_reload_keeps_it(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        page.locator(".points [tabindex='0']").focus()
        first = page.evaluate("document.activeElement.dataset.trial")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        wanted = page.evaluate("document.activeElement.dataset.trial")
        assert wanted != first
        assert page.get_by_role("tooltip").locator(".id").inner_text() == wanted
        page.keyboard.press("Escape")
        assert page.get_by_role("tooltip").count() == 0
        page.keyboard.press("Enter")
        page.locator("#trial-title", has_text=wanted).wait_for()
        page.reload()
        page.locator("#trial-title", has_text=wanted).wait_for()


@pytest.mark.parametrize(("part", "count"), [("#frontier", 1), ("#training", 5)])
def test_pictures_are_saved_as_files_of_their_own(
    browser: Browser, address: str, part: str, count: int
) -> None:
    """For print: with the style inside, as no other program has the page's sheet."""
    with opened(browser, address) as page:
        found: list[Download] = []
        page.on("download", lambda each: found.append(each))  # noqa: PLW0108 - a method of a list is no handler
        page.locator(f"{part} button.save").click()
        page.wait_for_timeout(500)
        assert len(found) == count
        assert all(each.suggested_filename.endswith(".svg") for each in found)
        tree = ET.parse(found[0].path())  # noqa: S314 - our own bytes
        assert tree.getroot().tag == f"{SVG}svg"
        lines = [node for node in tree.iter(f"{SVG}path") if "line" in node.get("class", "").split()]
        assert lines
        assert all(node.get("stroke", "none") != "none" for node in lines)


def test_tables_sort(browser: Browser, address: str) -> None:
    with opened(browser, address) as page:
        column = "#trials tbody tr td:nth-child(4)"
        kls = [float(text.split(" ")[0]) for text in page.locator(column).all_inner_texts() if "±" in text]
        assert kls == sorted(kls)
        page.locator("#cdsweep-sort-kl").click()
        kls = [float(text.split(" ")[0]) for text in page.locator(column).all_inner_texts() if "±" in text]
        assert kls == sorted(kls, reverse=True)
        assert page.locator("#trials th[aria-sort='descending']").inner_text() == "KL"
        assert "the loss became NaN" in page.locator("#trials .failed").inner_text()


LIMITS = [
    {"right": 0.3},
    {"right": 0.9},
    {"near": -1.25},
    {"right": 0.55, "near": -1.2},
    {"right": 0.9, "near": -1.0},
    {"right": 1.15, "near": -1.3},
    {"right": 0.0, "near": -1.9},
    {"kl": 0.2},
    {"kl": 0.35, "right": 0.7},
]


@pytest.mark.parametrize("mix", [True, False])
def test_brushing_shows_what_pick_gives(browser: Browser, address: str, store: SweepStore, mix: bool) -> None:
    with opened(browser, address) as page:
        page.get_by_role("radio", name="mixture of trials" if mix else "single trial").check()
        for limits in LIMITS:
            for name in ("right", "near", "kl"):
                page.fill(f"#cdsweep-limit-{name}", str(limits.get(name, "")))
            words = [f"--at-least={name}={bound}" for name, bound in limits.items() if name != "kl"]
            words += [f"--kl-at-most={limits['kl']}"] if "kl" in limits else []
            expected = asked(store, *words, *([] if mix else ["--single"]))
            found = shown(page)
            assert [each["trial_id"] for each in found["mixture"]] == [
                each["trial_id"] for each in expected["mixture"]
            ], limits
            assert [each["probability"] for each in found["mixture"]] == pytest.approx(
                [each["probability"] for each in expected["mixture"]], abs=1e-6
            )
            assert found["kl"] == pytest.approx(expected["kl"], abs=1e-7)
            assert found["rewards"] == pytest.approx(expected["rewards"], abs=1e-6)
            assert found["tangent"] == pytest.approx(expected["tangent"], abs=1e-7)
            listed = page.locator("#cdsweep-picked .members li").all_inner_texts()
            assert len(listed) == len(expected["mixture"])
            command = page.locator("#cdsweep-picked .command").inner_text()
            assert command.endswith("--single") is not mix
            assert asked(store, *command.split()[3:])["mixture"] == expected["mixture"], (
                "and so does its command"
            )


def test_a_threshold_is_dragged_and_moved_by_keys(browser: Browser, address: str, store: SweepStore) -> None:
    with opened(browser, address) as page:
        page.fill("#cdsweep-limit-near", "")
        page.get_by_role("radio", name="single trial").check()
        handle = page.locator("[data-handle='right']")
        handle.scroll_into_view_if_needed()
        box = handle.locator(".grip").bounding_box()
        assert box
        start = float(page.input_value("#cdsweep-limit-right"))
        page.mouse.move(box["x"] + 7, box["y"] + 6)
        page.mouse.down()
        page.mouse.move(box["x"] - 160, box["y"] + 30, steps=8)
        page.mouse.up()
        moved = float(page.input_value("#cdsweep-limit-right"))
        assert moved < start - 0.1
        assert shown(page)["mixture"] == asked(store, f"--at-least=right={moved}", "--single")["mixture"]
        handle.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("PageDown")
        lower = float(page.input_value("#cdsweep-limit-right"))
        assert lower < moved
        assert page.evaluate("document.activeElement.dataset.handle") == "right"
        assert shown(page)["mixture"] == asked(store, f"--at-least=right={lower}", "--single")["mixture"]
        page.fill("#cdsweep-limit-right", "99")
        assert "No finished trial reaches" in page.locator("#cdsweep-picked").inner_text()


def test_a_newer_document_keeps_what_the_reader_chose(
    browser: Browser, tmp_path: Path, store: SweepStore, address: str
) -> None:
    early = write_report(write_sweep(tmp_path, finished=8))
    newer = write_report(store).document
    with opened(browser, Path(early.path).as_uri()) as page:
        assert page.locator(".points [data-trial]").count() == 8
        page.select_option("#cdsweep-axis-x", "reward:near")
        chosen = page.locator(".points [data-trial]").first.get_attribute("data-trial")
        page.locator(".points [data-trial]").first.press("Enter")
        page.evaluate("document => cdsweepReport.update(document)", newer)
        assert page.locator(".points [data-trial]").count() == 16
        assert page.locator("#cdsweep-axis-x").input_value() == "reward:near"
        assert chosen in page.locator("#trial-title").inner_text()


def test_what_is_missing_or_damaged_is_said(browser: Browser, tmp_path: Path) -> None:
    store = write_sweep(tmp_path, finished=5)
    damaged = min((tmp_path / "demo" / "trials").glob("*.parquet"))
    damaged.write_bytes(b"nothing")
    with opened(browser, Path(write_report(store).path).as_uri()) as page:
        assert str(damaged) in page.locator(".problems").inner_text()
        assert page.locator(".points [data-trial]").count() == 4
        assert page.locator("#images").count() == 0
        keep(page, "report-damaged")
    nothing = write_sweep(tmp_path / "other", finished=0)
    with opened(browser, Path(write_report(nothing).path).as_uri()) as page:
        assert "No trial has finished yet." in page.locator("#summary").inner_text()
        assert page.locator(".points [data-trial]").count() == 0
        assert "nothing to pick from" in page.locator("#cdsweep-picked").inner_text().lower() or (
            "Set a threshold" in page.locator("#cdsweep-picked").inner_text()
        )


def test_a_thousand_trials_open_in_a_few_times_the_time_of_three(browser: Browser, tmp_path: Path) -> None:
    """About a second on a quiet laptop; measured by a page of three in the same minutes, however busy the machine."""
    written = {
        count: write_report(write_sweep(tmp_path / str(count), MANY, packed=True, finished=count))
        for count in (3, 1000)
    }
    took: dict[int, list[float]] = {3: [], 1000: []}
    for count in (3, 1000) * 3:
        began = time.monotonic()
        with opened(browser, Path(written[count].path).as_uri()) as page:
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
            )
            took[count].append(time.monotonic() - began)
            assert page.locator(".points [data-trial]").count() == count
            if count == 1000 and len(took[count]) == 1:
                keep(page, "report-thousand", "#frontier")
    assert min(took[1000]) < 10 * min(took[3])
