"""One file, nothing to fetch, no text that becomes markup, and pictures within their budget."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.reported import SPEC, noise_pictures, write_sweep

from orchestrator.report.page.document import report_document
from orchestrator.report.page.page import report_page, safe_json, script, style
from orchestrator.report.page.thumbnails import BUDGET

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 &amp;"


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)
    assert found
    document: dict[str, Any] = json.loads(found[1])
    return document


def test_the_page_holds_the_document_and_asks_for_nothing(tmp_path: Path) -> None:
    document = report_document(write_sweep(tmp_path, finished=4, failed=1))
    page = report_page(document).decode()
    assert data_of(page) == document
    assert not re.search(r'(src|href)\s*=\s*"(?!data:|#)', page), "no file beside it, and no address"
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg|http-equiv", "", page)
    assert page.count("<script") == 2, "an error message with a script's end is data"
    assert "<b>not markup</b>" not in page


def test_its_policy_allows_its_own_script_and_no_other(tmp_path: Path) -> None:
    page = report_page(report_document(write_sweep(tmp_path, finished=1))).decode()
    code = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(code) == 1
    digest = base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}" in page or f"script-src 'sha256-{digest}'" in page
    assert "unsafe" not in re.findall(r'Content-Security-Policy" content="(.*?)"', page)[0]


def test_json_stands_in_a_script_whatever_its_text() -> None:
    text = safe_json({"error": HOSTILE})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"error": HOSTILE}
    with pytest.raises(ValueError, match="JSON"):
        safe_json({"kl": float("nan")})


def test_the_name_of_a_sweep_is_text(tmp_path: Path) -> None:
    document = report_document(write_sweep(tmp_path, finished=1)) | {"sweep": HOSTILE}
    page = report_page(document).decode()
    assert page.count("<script") == 2
    assert "&lt;/script&gt;" in page


def test_other_pages_can_use_the_components() -> None:
    assert "report.mount = function" in script()
    assert "report.update = " in script()
    rules = re.findall(r"^([^@\s{}][^{}]*)\{", style(), re.MULTILINE)
    assert all(rule.strip().startswith(".cdsweep-report") for rule in rules), "styles of its own alone"


@pytest.mark.slow
def test_a_hundred_trials_with_pictures_stay_small(tmp_path: Path) -> None:
    spec = SPEC.replace("[0.2, 0.5, 0.8]", str([round(0.1 * step, 1) for step in range(1, 9)])).replace(
        "[0.2, 0.5]", "[0.1, 0.2, 0.3, 0.4, 0.5]"
    )
    spec = spec.replace("[0.3, 0.6, 1.2]", str([round(0.1 * step, 1) for step in range(1, 11)]))
    store = write_sweep(tmp_path, spec, pictures=noise_pictures(8, 96), steps=200)
    document = report_document(store)
    assert len(document["trials"]) == 100
    assert len(document["images"]["trials"]) == 100
    assert sum(len(each["source"]) for each in document["images"]["trials"].values()) < 1.4 * BUDGET
    assert len(report_page(document)) < 15_000_000
