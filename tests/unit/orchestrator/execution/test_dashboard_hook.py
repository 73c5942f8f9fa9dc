"""The hook in Ray's dashboard process, on a stand-in for Ray: it acts there alone, and never keeps it from starting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.report.dashboard.enable import search_path


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A package of Ray's names; its dashboard says what it found."""
    package = tmp_path / "ray/dashboard"
    package.mkdir(parents=True)
    (tmp_path / "ray/__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "head.py").write_text("LOADED = True\n")
    program = "import ray.dashboard.head, sys\nprint('started', ray.dashboard.head.LOADED, 'beside' in sys.modules)\n"
    (package / "dashboard.py").write_text(program)
    (tmp_path / "other.py").write_text(program)
    return tmp_path


def run(program: Path, *paths: Path, options: tuple[str, ...] = ()) -> tuple[str, str]:
    before = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(program), *options],
        env={**os.environ, "PYTHONPATH": search_path(before)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip(), done.stderr.strip()


def test_a_ray_without_the_base_class_starts_as_before(stand_in: Path) -> None:
    out, err = run(stand_in / "ray/dashboard/dashboard.py", stand_in)
    assert out == "started True False"
    assert err.startswith("cdsweep: no page in Ray's dashboard: ModuleNotFoundError")
    assert len(err.splitlines()) == 1


def test_what_went_wrong_stands_among_rays_logs(stand_in: Path) -> None:
    program = stand_in / "ray/dashboard/dashboard.py"
    assert run(program, stand_in, options=(f"--log-dir={stand_in}",)) == ("started True False", "")
    assert "no page in Ray's dashboard" in (stand_in / "cdsweep_page.log").read_text()


def test_a_ray_whose_modules_must_have_more_starts_as_before(stand_in: Path) -> None:
    (stand_in / "ray/dashboard/optional_utils.py").write_text(
        "class DashboardHeadRouteTable:\n    get = staticmethod(lambda path: lambda handler: handler)\n"
    )
    (stand_in / "ray/dashboard/utils.py").write_text(
        "import abc\nclass DashboardHeadModule(abc.ABC):\n    @abc.abstractmethod\n    def novelty(self): ...\n"
    )
    (stand_in / "ray/dashboard/dashboard.py").write_text(
        "import ray.dashboard.head\nfrom ray.dashboard.utils import DashboardHeadModule\n"
        "print('started', DashboardHeadModule.__subclasses__())\n"
    )
    out, err = run(stand_in / "ray/dashboard/dashboard.py", stand_in)
    assert out == "started []"
    assert (
        err
        == "cdsweep: no page in Ray's dashboard: ImportError: Ray's dashboard modules must have novelty too"
    )


def test_other_processes_are_left_alone(stand_in: Path) -> None:
    assert run(stand_in / "other.py", stand_in) == ("started True False", "")


def test_another_sitecustomize_is_run_too(stand_in: Path) -> None:
    (stand_in / "beside.py").touch()
    (stand_in / "sitecustomize.py").write_text("import beside\n")
    assert run(stand_in / "other.py", stand_in)[0] == "started True True"


def test_the_search_path_has_the_hook_once_and_first() -> None:
    once = search_path("/a:/b")
    assert search_path(once) == once
    hook, *others = once.split(":")
    assert others == ["/a", "/b"]
    assert (Path(hook) / "sitecustomize.py").exists()
