"""Imports go one way: a module uses only what lies below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import safemigrate

PACKAGE = Path(safemigrate.__file__).parent

#: Low to high. A module imports only from rows above its own in this list, and none is hidden in a function.
ROWS = [
    [
        "charts",
        "context",
        "exceptions",
        "keys",
        "pacing",
        "processes",
        "heartbeat",
        "signals",
        "spelling",
        "statuses",
        "steps",
        "tables",
    ],
    ["conf", "executors.base", "fields", "models", "populate"],
    ["executors.inline", "executors.celery", "executors.rq", "executors.tasks"],
    ["executors"],
    ["databases.base", "databases.writes.arrays", "databases.monitoring.base", "columns", "names"],
    ["databases.blockers.postgresql", "databases.blockers.mysql"],
    ["databases.postgresql", "databases.mysql", "databases.sqlite"],
    ["databases.monitoring.postgresql", "databases.monitoring.mysql", "databases.monitoring.sqlite"],
    ["databases", "databases.monitoring", "databases.writes.base"],
    ["databases.writes.postgresql", "databases.writes.mysql", "databases.writes.sqlite"],
    ["databases.guards.base"],
    ["databases.guards.postgresql", "databases.guards.mysql", "databases.guards.sqlite"],
    ["databases.guards", "databases.writes"],
    ["batches", "guards", "locks", "throttles", "uniqueness"],
    ["proofs", "work"],
    ["workers"],
    ["backfill", "requiring", "sandbox", "runs", "sampling"],
    ["shortcuts"],
    ["observers", "limits", "notify", "operations", "progress", "ranges", "recorder"],
    ["fills", "holding"],
    ["closing", "dispatch"],
    ["chain"],
    ["workers"],
    ["tasks"],
    ["expressions", "targets"],
    ["loops", "marks", "pending", "risks", "rollout", "unapplied"],
    ["plan", "planning"],
    ["writing", "applying", "reporting"],
    ["checks", "pages", "reports"],
    ["apps", "filters", "management.commands.backfill", "management.commands.add_required_field"],
    ["admin"],
]
ROW = {module: number for number, row in enumerate(ROWS) for module in row}


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


def test_every_module_has_its_row() -> None:
    assert set(MODULES) == set(ROW)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_below(module: str) -> None:
    assert {other for other in imported(MODULES[module]) if ROW[other] >= ROW[module]} == set()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_hides_in_a_function(module: str) -> None:
    functions = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef)]
    assert set().union(*(imported(function) for function in functions)) == set()


@pytest.mark.parametrize("module", sorted(set(MODULES) - {m for m in MODULES if m.startswith("databases")}))
def test_only_the_databases_ask_which_database_it_is(module: str) -> None:
    names = {node.attr for node in ast.walk(MODULES[module]) if isinstance(node, ast.Attribute)}
    assert names & {"vendor", "mysql_is_mariadb", "pg_version"} == set()


def test_an_old_migration_loads_without_the_app_being_installed() -> None:
    """The operations need no model of ours, whose import would fail then."""
    reached, todo = set(), ["operations", "populate"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += imported(MODULES[module]) if module in MODULES else []
    assert "models" not in reached
    assert "backfill" in reached
