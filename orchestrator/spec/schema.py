"""The JSON Schema of a spec, which editors complete and check with.

It says what can be said field by field; rules between fields are checked on loading.
"""

import ast
import inspect
import textwrap
from typing import Any

from pydantic import BaseModel

from orchestrator.spec.records.models import SweepSpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_BASE = {"required": ["pretrained"], "not": {"required": ["lora"]}}
"""What ``model`` is beside ``models``."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec, with the documentation of every field."""
    schema = SweepSpec.model_json_schema()
    described = {model.__name__: model for model in _subclasses(BaseModel)}
    _describe(schema, described)
    schema["$defs"]["ModelConfig"]["oneOf"] = [{"required": ["mixture"]}, {"required": ["pretrained"]}]
    schema["required"] = [name for name in schema["required"] if name not in {"model", "constraints"}]
    schema["oneOf"] = [
        {
            "required": ["model", "constraints"],
            "properties": {"constraints": {"minItems": 1}},
            "not": {"required": ["models"]},
        },
        {"required": ["models", "objective"], "properties": {"model": _BASE}},
    ]
    schema["properties"]["model"] = _without_null(schema["properties"]["model"])
    schema["properties"]["models"] = _without_null(schema["properties"]["models"])
    return {"$schema": _DIALECT, **schema, "title": "A cdsweep spec"}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field that may be left out, but is never written as null."""
    [form] = [form for form in field["anyOf"] if form.get("type") != "null"]
    kept = {key: value for key, value in field.items() if key not in {"anyOf", "default"}}
    return {**kept, **form}


def _subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the project's own records."""
    found = [cls for cls in model.__subclasses__() if "[" not in cls.__name__]
    return [cls for child in model.__subclasses__() for cls in _subclasses(child)] + [
        cls for cls in found if cls.__module__.startswith(("orchestrator.spec.", "trainers."))
    ]


def _describe(node: Any, models: dict[str, type[BaseModel]]) -> None:
    """Put documentation under the properties of every object in ``node`` that is a record."""
    if isinstance(node, list):
        for item in node:
            _describe(item, models)
    if not isinstance(node, dict):
        return
    model = models.get(str(node.get("title")))
    if model is not None and "properties" in node:
        for name, text in _documentation(model).items():
            if name in node["properties"]:
                node["properties"][name]["description"] = text
    for value in node.values():
        _describe(value, models)


def _documentation(model: type[BaseModel]) -> dict[str, str]:
    """Return the strings under the fields of a record, inherited ones included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not cls.__module__.startswith(("orchestrator.", "trainers.")):
            continue
        if "[" in cls.__name__:
            continue  # a parametrised generic has no source of its own
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for statement, after in zip(tree.body, tree.body[1:], strict=False):
            match statement, after:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = inspect.cleandoc(text)
    return found
