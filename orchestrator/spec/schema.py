"""The JSON Schema of a spec, which editors complete and check with.

It says what can be said field by field; rules between fields are checked on loading.
"""

from typing import Any

from orchestrator.spec.records.models import SweepSpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_BASE = {"required": ["pretrained"], "not": {"required": ["lora"]}}
"""What ``model`` is beside ``models``."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a spec, with the documentation of every field."""
    schema = SweepSpec.model_json_schema()
    for record in (schema, *schema["$defs"].values()):
        for field in record["properties"].values():
            if "$ref" in field:  # pydantic leaves out what says the same as the record
                known = schema["$defs"][field["$ref"].rpartition("/")[2]]
                field.setdefault("description", known["description"])
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
