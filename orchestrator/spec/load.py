"""A spec file to a SweepSpec, and back.

text -> document (data with positions) -> overrides -> defaults of the kind of model -> SweepSpec, or one
SpecError that lists every problem.
Rules between sections are checked once every section is right in itself.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import SpecError
from orchestrator.spec.defaults import with_defaults
from orchestrator.spec.files.contents import with_contents
from orchestrator.spec.files.pipelines import composed_problems, directory_problems, lora_problems
from orchestrator.spec.files.presets import preset_told
from orchestrator.spec.files.prompts import DIRECTORY
from orchestrator.spec.files.reward_files import reward_problems
from orchestrator.spec.records.compositions import base_of
from orchestrator.spec.records.models import SweepSpec
from orchestrator.spec.records.rewards import resolve_rewards
from orchestrator.spec.records.trackers import missing_problems
from orchestrator.spec.rules.quantised import missing_quantiser
from orchestrator.spec.schema import json_schema
from orchestrator.spec.text.document import MAX_CHARACTERS, Document, parse, to_yaml
from orchestrator.spec.text.overrides import Overrides, apply
from orchestrator.spec.text.problems import NO_VALUE, Problem, spec_error, translate

__all__ = ["dump_spec", "json_schema", "load_spec", "parse_spec"]


def load_spec(source: str | Path, overrides: Sequence[str] = (), *, resolved: bool = False) -> SweepSpec:
    """Return the spec in a YAML or JSON file.

    Args:
        source: Path of the file.
        overrides: Changes to it, ``key.path=value`` each.
        resolved: It was written by ``dump_spec`` on another machine: what it names by path need not be here.

    Raises:
        SpecError: It cannot be read, or is not a valid spec.
    """
    name = str(source).encode("utf-8", "backslashreplace").decode()
    return parse_spec(
        _read(source, name), name, overrides, directory=None if resolved else Path(source).parent
    )


def parse_spec(
    text: str, source: str = "spec.yaml", overrides: Sequence[str] = (), *, directory: Path | None = None
) -> SweepSpec:
    """Return the spec in a text.

    Args:
        text: YAML or JSON.
        source: What messages call it.
        overrides: Changes to it, ``key.path=value`` each.
        directory: Where files that it names are looked for, before the working directory; without it, as for a spec
            that comes from a sweep, a pipeline's directory need not be there.

    Raises:
        SpecError: It is not a valid spec.
    """
    document = parse(text, source)
    if not isinstance(document.data, dict):
        raise spec_error(source, _placed([Problem(path=(), rule="must be a mapping", value=None)], document))
    applied = apply(document.data, overrides, source)
    # What was resolved is whole: what it leaves out is off, and no preset of this version's.
    whole = directory is None or "contents" in document.data
    data = with_defaults(document.data, None if whole else preset_told(document.data.get("model")))
    problems = list(document.problems)
    spec = None
    try:
        spec = SweepSpec.model_validate_json(json.dumps(data), context={DIRECTORY: directory})
    except ValidationError as error:
        # Null stands where the text is wrong: what that does to the mapping around it is the same mistake.
        known = {problem.path[:length] for problem in problems for length in range(len(problem.path) + 1)}
        problems += [p for p in translate(error, data, SweepSpec) if p.path not in known]
    if spec is not None and directory is not None:
        problems += [] if spec.model is None else directory_problems(spec.model)
        problems += [] if spec.models is None else composed_problems(spec.model, spec.models)
        if spec.distillation is not None and (base := base_of(spec)) is not None:
            problems += lora_problems(spec.distillation.lora, base.pretrained, ("distillation", "lora"))
        problems += reward_problems(resolve_rewards(spec))
        problems += missing_problems(spec.trackers)
        problems += missing_quantiser(spec)
        if not problems:
            spec, problems = with_contents(spec)
    if spec is None or problems:
        raise spec_error(source, _placed(problems, document, applied))
    return spec


def dump_spec(spec: SweepSpec) -> str:
    """Return the spec as YAML with all defaults written out; it loads to an equal spec."""
    return to_yaml(spec.model_dump(mode="json", exclude_none=True))


def _read(source: str | Path, name: str) -> str:
    """Return the text of a file, which may be a pipe; no more is read than a spec may be long."""
    limit = 4 * MAX_CHARACTERS
    try:
        with Path(source).open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{name}: cannot be read: {reason}") from error
    if len(content) > limit:
        raise SpecError(f"{name}: is larger than a spec may be ({MAX_CHARACTERS:,} characters)")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{name}, line {line}: is not text in UTF-8") from error


def _written(problem: Problem, data: Any) -> Any:
    """Return the value of a problem as the text has it, in place of what a rule has read it as."""
    if problem.value is NO_VALUE:
        return NO_VALUE
    for part in problem.path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return problem.value  # it is not written, or the problem is about a part of it
    return data


def _placed(
    problems: Iterable[Problem], document: Document, applied: Overrides | None = None
) -> list[Problem]:
    """Return the problems with line and column, or the override that they come from, in that order."""
    placed: list[tuple[tuple[int, int], Problem]] = []
    for problem in problems:
        override = applied.text_for(problem.path) if applied else None
        position = document.place(problem.path, at_key=problem.at_key)
        where = f", line {position.line}, column {position.column}"
        if override is not None:
            where = f", --set {override}"
        found = replace(problem, where=problem.where or where, value=_written(problem, document.data))
        placed.append(((position.line, position.column), found))
    return [problem for _, problem in sorted(placed, key=lambda pair: pair[0])]
