"""What a job carries: the code of cdsweep, the resolved spec, and what that names by path. No results, no caches.

code/orchestrator/  code/trainers/  code/cdsweep-VERSION.dist-info/     each a module path of the job
work/spec.yaml  work/python.sh  work/carried/…                         the job's working directory
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

from orchestrator.errors import UsageError

LIMIT = 100 * 2**20
"""Bytes of one package that Ray's dashboard takes."""
SPEC = "spec.yaml"
PYTHON = "python.sh"
"""Starts the interpreter that runs the cluster, which PATH need not have where Ray was started by its full path."""

_PYTHON = r"""# The interpreter with which Ray starts its workers; the command line of the raylet, an ancestor, has it.
process=$$
while [ "${process:-0}" -gt 1 ]; do
    python=$(tr '\0' '\n' < "/proc/$process/cmdline" | sed -n '
        s/^--python_worker_command=//; t found; d; :found
        s/"\{0,1\} "\{0,1\}[^"]*setup_worker\.py.*//; s/^"//; p')
    [ -x "$python" ] && break
    python=python
    process=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$process/status")
done 2> /dev/null
exec "${python:-python}" "$@"
"""

_PACKAGES = ("orchestrator", "trainers")
_DISTRIBUTION = "cdsweep"
_CARRIED = "carried"
_LEFT_OUT = ("__pycache__", "*.py[co]", ".*")


@dataclass(frozen=True, kw_only=True)
class Package:
    """Folders that are uploaded with a job."""

    working_dir: Path
    modules: tuple[Path, ...]


def carried_names(paths: list[str]) -> dict[str, str]:
    """Return where each path is carried to, relative to the working directory; the same path, the same place."""
    return {
        path: f"{_CARRIED}/{hashlib.sha256(path.encode()).hexdigest()[:8]}-{Path(path).name}"
        for path in paths
    }


def check_sizes(paths: list[str], *, limit: int = LIMIT) -> None:
    """Refuse what is too large to be carried, before anything is copied.

    Raises:
        UsageError: All together are larger than a package may be; names them, the largest first.
    """
    sizes = sorted(((_size(Path(path)), path) for path in paths), reverse=True)
    total = sum(size for size, _ in sizes)
    if total > limit:
        shown = ", ".join(f"{path} ({_mib(size)})" for size, path in sizes[:3])
        raise UsageError(
            f"the spec names files of {_mib(total)}, and a job carries at most {_mib(limit)}: {shown}. Name weights by "
            "their hub id, which every node downloads or has in its cache; or start the sweep on the head, where the "
            "paths are (`cdsweep run SPEC --address auto`)"
        )


def build(folder: Path, spec_yaml: str, carried: Mapping[str, str]) -> Package:
    """Copy everything into an empty folder.

    Args:
        folder: That stays until the upload is over.
        spec_yaml: The resolved spec.
        carried: Where in the working directory each path goes.

    Raises:
        UsageError: Something cannot be read.
    """
    work, code = folder / "work", folder / "code"
    work.mkdir()
    (work / SPEC).write_text(spec_yaml, encoding="utf-8")
    (work / PYTHON).write_text(_PYTHON, encoding="utf-8")
    try:
        for path, name in carried.items():
            _copy(Path(path), work / name)
    except OSError as error:  # shutil's own errors are of this kind
        raise UsageError(f"cannot read what the spec names by path: {error}") from error
    root = Path(__file__).parents[2]
    modules = [code / name for name in _PACKAGES]
    for module in modules:
        _copy(root / module.name, module)
    return Package(working_dir=work, modules=(*modules, _metadata(code)))


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without caches and hidden files; links become what they point at."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, target)
    else:
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns(*_LEFT_OUT), copy_function=shutil.copyfile
        )


def _metadata(code: Path) -> Path:
    """Write what says which version this is and which rewards, searches and optimisers are built in."""
    installed = distribution(_DISTRIBUTION)
    folder = code / f"{_DISTRIBUTION}-{installed.version}.dist-info"
    folder.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {_DISTRIBUTION}\nVersion: {installed.version}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    (folder / "entry_points.txt").write_text(installed.read_text("entry_points.txt") or "", encoding="utf-8")
    return folder


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder that are carried."""
    if path.is_file():
        return path.stat().st_size
    total = 0
    for child in path.iterdir():
        if child.name != "__pycache__" and not child.name.startswith("."):
            total += _size(child) if child.exists() else 0  # a link to nowhere
    return total


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
