"""What import-linter's contract in pyproject.toml leaves open; `make lint` holds the layers themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import safemigrate

PACKAGE = Path(safemigrate.__file__).parent


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name and "migrations" not in path.parts and path.read_text().strip():
            found[name] = ast.parse(path.read_text())
    return found


MODULES = modules()


def imported(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "safemigrate":
            base = (node.module or "").removeprefix("safemigrate").lstrip(".")
            for alias in node.names:
                deeper = f"{base}.{alias.name}".lstrip(".")
                found.add(deeper if deeper in MODULES else base)
    return found


def test_no_import_hides_in_a_function() -> None:
    hidden = {
        (name, other)
        for name, tree in MODULES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for other in imported(function)
    }
    assert hidden == set()


def test_only_the_backends_ask_which_database_it_is() -> None:
    asked = {"vendor", "mysql_is_mariadb", "pg_version"}
    asking = {
        name
        for name, tree in MODULES.items()
        if not name.startswith("backends")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in asked
    }
    assert asking == set()


def test_an_old_migration_loads_without_the_app_being_installed() -> None:
    """The operations need no model of ours, whose import would fail then."""
    reached, todo = set(), ["operations", "populate"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += imported(MODULES[module]) if module in MODULES else []
    assert "models" not in reached
    assert "engine.engine" in reached
