"""Python and the packages that matter, against what cdsweep declares to work with."""

import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestrator.doctor.finding import Finding, Patient

_OWN_LINE = ("ray", "torch", "diffusers")
_INSTALL = "install what was tested: pip install --constraint constraints.txt cdsweep"


def check_versions(patient: Patient) -> Iterator[Finding]:
    """Look at the installed versions."""
    del patient
    declared = metadata.metadata("cdsweep")["Requires-Python"] or ""
    running = ".".join(map(str, sys.version_info[:3]))
    right = running in SpecifierSet(declared)
    yield Finding(
        name="python",
        status="ok" if right else "fail",
        found=f"{running} (needs {declared})",
        mend="" if right else "make a virtual environment with a newer Python",
    )
    wrong = []
    for line in metadata.requires("cdsweep") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        said = f"{version or 'not installed'} (needs {requirement.specifier})"
        if requirement.name in _OWN_LINE:
            yield Finding(
                name=requirement.name,
                status="ok" if fits else "fail",
                found=said,
                mend="" if fits else _INSTALL,
            )
        elif not fits:
            wrong.append(f"{requirement.name} {said}")
    yield Finding(
        name="packages",
        status="fail" if wrong else "ok",
        found="; ".join(wrong) or "all that are needed, in fitting versions",
        mend=_INSTALL if wrong else "",
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
