"""A loop that writes row after row, found in a function's source without running it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from textwrap import dedent
from types import FunctionType
from typing import Any

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
CONTAINERS = (list, tuple, set, frozenset, dict, range, str)
REORDERED = {"enumerate", "frozenset", "list", "range", "reversed", "set", "sorted", "tuple", "zip"}
WRITES = {"update_or_create", "aupdate_or_create", "bulk_update", "abulk_update"}


@dataclass(frozen=True)
class Loop:
    """Which function has the loop, and the models that are asked for by name, as (app label, name)."""

    function: str
    models: frozenset[tuple[str, str]]


def find(code: Any) -> Loop | None:
    """Return the first loop that writes in `code`, or in the functions of the same module that it calls.

    A loop over what the source itself lists does not count, nor does code whose source cannot be had.
    """
    trees = _trees(_function(code))
    writers = {function.__name__ for function, tree in trees.items() if any(map(_writes, _calls(tree)))}
    for function, tree in trees.items():
        if any(_has_write(loop, writers) for loop in _loops(tree, function.__globals__)):
            return Loop(
                function.__name__, frozenset(name for tree in trees.values() for name in _models(tree))
            )
    return None


def models_named(code: Any) -> set[tuple[str, str]]:
    """Return the models that `code`, or what it calls of its module, gets by get_model, as (app label, name)."""
    return {model for tree in _trees(_function(code)).values() for model in _models(tree)}


def _function(code: Any) -> Any:
    while isinstance(code, partial):
        code = code.func
    code = inspect.unwrap(getattr(code, "__func__", code))
    return code if isinstance(code, FunctionType) else type(code).__call__


def _trees(function: Any) -> dict[FunctionType, ast.AST]:
    """Return the source of the function and of those of its module that it calls, directly or not."""
    found: dict[FunctionType, ast.AST] = {}
    todo = [function]
    while todo:
        current = todo.pop(0)
        tree = _tree(current) if isinstance(current, FunctionType) and current not in found else None
        if tree is None:
            continue
        found[current] = tree
        named = [
            current.__globals__.get(call.func.id) for call in _calls(tree) if isinstance(call.func, ast.Name)
        ]
        todo += [other for other in named if getattr(other, "__module__", None) == current.__module__]
    return found


def _tree(function: FunctionType) -> ast.AST | None:
    try:
        return ast.parse(dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _has_write(loop: ast.AST, writers: Iterable[str]) -> bool:
    return any(
        _writes(call) or (isinstance(call.func, ast.Name) and call.func.id in writers)
        for call in _calls(loop)
    )


def _writes(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    name, receiver = call.func.attr, call.func.value
    if name in {"save", "asave"}:
        return not call.args  # Files and images are saved under a name.
    if name in {"update", "aupdate"}:  # As in .filter(...).update(field=value); a dict is updated otherwise.
        return isinstance(receiver, ast.Call) and bool(call.keywords) and not call.args
    return name in WRITES


def _loops(tree: ast.AST, known: dict[str, Any]) -> Iterator[ast.AST]:
    listed = _listed(tree, known)
    for node in ast.walk(tree):
        sources = _sources(node)
        if isinstance(node, ast.While) or not all(_is_listed(source, listed) for source in sources):
            yield node


def _sources(node: ast.AST) -> list[ast.expr]:
    """Return what a loop goes over; of anything else nothing."""
    if isinstance(node, ast.For | ast.AsyncFor):
        return [node.iter]
    return [part.iter for part in node.generators] if isinstance(node, COMPREHENSIONS) else []


def _listed(tree: ast.AST, known: dict[str, Any]) -> set[str]:
    """Return the names of what the source itself lists, rather than reads from anywhere."""
    listed = {name for name, value in known.items() if isinstance(value, CONTAINERS)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            names = {name for target in node.targets for name in _names(target)}
            # An empty list is going to be filled from somewhere.
            listed = (
                listed | names
                if _is_listed(node.value, listed) and _has_items(node.value)
                else listed - names
            )
        elif isinstance(node, ast.For) and _is_listed(node.iter, listed):
            listed |= _names(node.target)
    return listed


def _names(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _has_items(node: ast.AST) -> bool:
    return bool(getattr(node, "elts", True)) and bool(getattr(node, "keys", True))


def _is_listed(node: ast.AST, listed: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in listed
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in {"items", "keys", "values", "split"} and _is_listed(node.func.value, listed)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in REORDERED and all(_is_listed(argument, listed) for argument in node.args)
    return isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict | ast.Constant)


def _models(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Return the models that are got as apps.get_model("polls", "Question") or by "polls.Question"."""
    for call in _calls(tree):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "get_model":
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            label = ".".join(str(part.value) for part in given if isinstance(part, ast.Constant))
            app_label, _, name = label.partition(".")
            if name and "." not in name:
                yield app_label, name.lower()
