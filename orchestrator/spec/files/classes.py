"""What classes of extension points say of themselves, read from their source.

Rewards and estimators import torch, and a plan does without it: so a class attribute that is a plain constant, such as
``differentiable = False``, is looked up in the text of its module, and in those of the classes that it inherits from.
"""

import ast
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path

_DEEPEST = 16
"""Classes and imports that are followed one after the other."""


def says(group: str, name: str, attribute: str) -> bool | None:
    """Return the flag that the class registered as ``name`` has by this attribute; None where its source tells none."""
    entry = next(iter(entry_points(group=group, name=name)), None)
    if entry is None:
        return None
    return _of_class(entry.module, entry.attr, attribute, _DEEPEST)


def find_module(name: str, path: list[str] | None) -> ModuleSpec | None:
    """Ask the import system where a module is; ``importlib.util.find_spec`` would import its parents."""
    for finder in sys.meta_path:
        if (spec := finder.find_spec(name, path)) is not None:
            return spec
    return None


def _of_class(module: str, name: str, attribute: str, deepest: int) -> bool | None:
    """Return the flag of a class, its own or that of the first of its bases which has one."""
    tree = _parsed(module)
    if tree is None or deepest == 0:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            if (own := _flag(node, attribute)) is not None:
                return own
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            inherited = (_of_class(module, base, attribute, deepest - 1) for base in bases)
            return next((flag for flag in inherited if flag is not None), None)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _of_class(_source_of(node, module), alias.name, attribute, deepest - 1)
    return None


def _flag(node: ast.ClassDef, attribute: str) -> bool | None:
    """Return the constant that a class's own body gives an attribute."""
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
            value = getattr(line, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, bool):
                return value.value
    return None


def _source_of(node: ast.ImportFrom, module: str) -> str:
    """Return the module that a line imports from, by its whole name."""
    if not node.level:
        return node.module or ""
    spec = _located(module)
    parts = module.split(".")
    package = parts if spec is not None and spec.submodule_search_locations else parts[:-1]
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _parsed(module: str) -> ast.Module | None:
    """Return the source of a module; None where it is not here, or no Python."""
    spec = _located(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _located(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing it or its parents."""
    parts = module.split(".")
    path: list[str] | None = None
    spec: ModuleSpec | None = None
    for depth in range(1, len(parts) + 1):
        spec = find_module(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return spec
