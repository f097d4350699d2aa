"""Python text that a person typed, read without running it, as it will stand in a migration."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

from django.db import models
from django.db.models.functions.datetime import TimezoneMixin

from safemigrate.exceptions import InvalidExpression, InvalidPopulate, SafemigrateError
from safemigrate.formatting import nearest
from safemigrate.populate import FromRelated, sources
from safemigrate.populate.columns import column_problem, related_problem
from safemigrate.populate.names import CLOCKS, FUNCTION_KINDS, KNOWN, MODULES, OTHER_MODELS, PER_ROW


@dataclass(frozen=True)
class Snippet:
    """A piece of Python as it stands in a migration, and the import lines that it needs."""

    code: str
    imports: frozenset[str] = frozenset()


def read(text: str, model: type[models.Model], field: models.Field[Any, Any]) -> Snippet:
    """Return the source that `text` stands for, with its names checked against `model`.

    Nothing in the text is called. Modules that it names by a dotted path are imported.
    Raises InvalidExpression, with a caret under the place where that helps.
    """
    text = text.strip()
    _refuse_date(text)
    tree = _parse(text)
    path = _dotted_path(tree)
    if path:
        _refuse_field(path, model)
        return _read_path(path)
    if _is_literal(tree):
        check_constant(ast.literal_eval(tree), field)
    reader = _Reader(text, model, field)
    if _chain(tree):
        reader.check_alone(tree)
    code = ast.unparse(reader.visit(tree))
    return Snippet(double_quoted(code), frozenset(reader.imports))


def double_quoted(code: str) -> str:
    """Return `code` with double quotes around each string, where that changes nothing else."""
    lines = code.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        opening = token.string.find("'")
        body = token.string[opening + 1 : -1]
        plain = token.type == tokenize.STRING and token.string.endswith("'") and opening in (0, 1, 2)
        if not plain or any(mark in body for mark in "\"'\\\n"):
            continue
        (row, start), (_, end) = token.start, token.end
        line = lines[row - 1]
        quoted = f'{token.string[:opening]}"{body}"'
        lines[row - 1] = line[:start] + quoted + line[end:]
    return "".join(lines)


def check_constant(value: Any, field: models.Field[Any, Any]) -> None:
    """Raise InvalidExpression unless every row may have `value` in `field`."""
    if value is None:
        raise InvalidExpression(f"None is what old rows have already, and {field.name} is to be required.")
    if field.unique:
        raise InvalidExpression(
            f"{field.name} is unique, and {value!r} would be the same in every row. "
            "Give an expression or a function that differs from row to row, such as uuid.uuid4."
        )
    try:
        cleaned = field.to_python(value)
        field.run_validators(cleaned)
        if field.choices and cleaned not in dict(field.flatchoices):
            raise ValueError(
                f"it is none of the choices {', '.join(repr(key) for key, _ in field.flatchoices)}"
            )
    except Exception as error:
        reason = " ".join(getattr(error, "messages", [str(error)]))
        raise InvalidExpression(
            f"{value!r} is no value for {field.name} ({type(field).__name__}): {reason}"
        ) from error


def _parse(text: str) -> ast.expr:
    if not text:
        raise InvalidExpression("--populate is empty. Write an empty string as '\"\"'.")
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        place = _caret(text, error.lineno or 1, (error.offset or 1) - 1)
        raise InvalidExpression(f"--populate is not Python: {error.msg}\n{place}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidExpression(f"--populate is not Python: {error}") from error


def _refuse_date(text: str) -> None:
    """Refuse a date without quotes, which Python reads as a subtraction."""
    match = re.fullmatch(r"(\d{4})-(\d{1,2})-(\d{1,2})(?:[ T](\d{1,2}):(\d{2})(?::(\d{2}))?)?", text)
    if match is None:
        return
    parts = ", ".join(str(int(part)) for part in match.groups() if part is not None)
    kind = "date" if match[4] is None else "datetime"
    raise InvalidExpression(f"{text} is not Python: a {kind} is written {kind}({parts})")


def _refuse_field(path: str, model: type[models.Model]) -> None:
    """Refuse what begins with a field of the model, and no module has its name."""
    first, *rest = path.split(".")
    if first in _fields(model) and find_spec(first) is None:
        is_relation = any(f.is_relation and first in (f.name, f.attname) for f in model._meta.concrete_fields)
        write = f'FromRelated("{"__".join([first, *rest])}")' if is_relation else f'F("{first}")'
        raise InvalidExpression(f"{first} is a field of {model._meta.object_name}: write {write}")


def _fields(model: type[models.Model]) -> set[str]:
    return {name for field in model._meta.concrete_fields for name in (field.name, field.attname)}


def _caret(text: str, row: int, column: int) -> str:
    lines = text.splitlines() or [""]
    return f"    {lines[min(row, len(lines)) - 1]}\n    {' ' * column}^"


def _is_literal(tree: ast.expr) -> bool:
    try:
        ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def _chain(node: ast.expr) -> list[str]:
    """Return the names of a.b.c, or nothing where the node is something else."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return [node.id, *reversed(attributes)] if isinstance(node, ast.Name) else []


def _dotted_path(tree: ast.expr) -> str | None:
    if isinstance(tree, ast.Constant):
        quoted = sources.is_dotted_path(tree.value)
        return str(tree.value) if quoted else None
    names = _chain(tree)
    return ".".join(names) if len(names) > 1 and names[0] not in KNOWN else None


def _read_path(path: str) -> Snippet:
    try:
        sources.resolve(import_path(path))
    except SafemigrateError as error:
        raise InvalidExpression(
            f'{error}\nIf the text itself is the value for every row, write Value("{path}").'
        ) from error
    return Snippet(f'"{path}"')


def import_path(path: str) -> Any:
    """Return the object at the dotted path; raise InvalidExpression that says which part is missing."""
    module_name, _, name = path.rpartition(".")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise InvalidExpression(f"{path} cannot be imported: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        hint = nearest(name, vars(module))
        raise InvalidExpression(f"{path} cannot be imported: {module_name} has no {name}.{hint}") from None


ALLOWED = (
    ast.Call,
    ast.keyword,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.BinOp,
    ast.UnaryOp,
    ast.operator,
    ast.USub,
    ast.UAdd,
    ast.Invert,
    ast.expr_context,
)
#: What other languages write, and Python otherwise.
WORDS = {"true": "True", "false": "False", "TRUE": "True", "FALSE": "False", "null": "None", "NULL": "None"}
#: What Python computes, and what the database has in its place.
FUNCTIONS = {"len": "Length", "abs": "Abs", "round": "Round", "min": "Least", "max": "Greatest"}
FUNCTIONS |= dict.fromkeys(("str", "int", "float"), "Cast")
ADVICE: dict[type[ast.AST], str] = {
    ast.Lambda: "A lambda is not allowed: give a function of your own, in a module, by its dotted path.",
    ast.Compare: "A comparison is computed by Python, not by the database: write Q(votes__gt=3).",
    ast.BoolOp: "`and`, `or` are computed by Python, not by the database: write & and | between Q objects.",
    ast.Not: "`not` is computed by Python, not by the database: write ~ before a Q object.",
    ast.IfExp: "`if` is computed by Python, not by the database: write Case(When(...), default=...).",
    ast.JoinedStr: "An f-string is Python's, not the database's: write Concat('a', 'b').",
}


class _Reader(ast.NodeTransformer):
    """Walks the tree, refuses what must not be there, and writes each name as the migration says it."""

    def __init__(self, text: str, model: type[models.Model], field: models.Field[Any, Any]) -> None:
        self.text = text
        self.model = model
        self.field = field
        self.imports: set[str] = set()

    def refuse(self, node: Any, message: str) -> NoReturn:
        row = node.lineno
        # ast counts bytes.
        line = self.text.splitlines()[row - 1].encode()
        column = len(line[: node.col_offset].decode(errors="replace"))
        raise InvalidExpression(f"{message}\n{_caret(self.text, row, column)}")

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.refuse(node, ADVICE[ast.Not])
        if not isinstance(node, ALLOWED):
            plain = f"{type(node).__name__} cannot stand in --populate: give a function by its dotted path."
            self.refuse(node, ADVICE.get(type(node), plain))
        return super().generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.named(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr.startswith("_"):
            self.refuse(node, f"{node.attr} is private and cannot stand in --populate.")
        if _chain(node):
            return self.named(node)
        node.value = self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.check_function(node)
        called = self.find(node.func)[0] if _chain(node.func) else None
        self.check_own(node, called)
        self.check_call(node, called)
        if not (isinstance(called, type) and issubclass(called, OTHER_MODELS)):
            self.check_names(node, called)
        return self.generic_visit(node)

    def named(self, node: ast.expr) -> ast.expr:
        _, code, line = self.find(node)
        if line:
            self.imports.add(line)
        return ast.parse(code, mode="eval").body

    def find(self, node: ast.expr) -> tuple[Any, str, str | None]:
        first, *rest = _chain(node)
        candidates = KNOWN.get(first, ())
        for known in candidates:
            value = _walk(known.value, rest)
            if value is not None and not any(value is module for module in MODULES):
                return value, ".".join([known.code, *rest]), known.line
        if candidates:
            self.refuse_attribute(node, first, rest)
        return self.imported(node, [first, *rest])

    def imported(self, node: ast.expr, names: list[str]) -> tuple[Any, str, str]:
        if len(names) == 1:
            if names[0] in _fields(self.model):
                owner = self.model._meta.object_name
                self.refuse(node, f'{names[0]} is a field of {owner}: write F("{names[0]}")')
            if names[0] in WORDS:
                self.refuse(node, f"{names[0]} is not Python. Did you mean {WORDS[names[0]]}?")
            if names[0] in FUNCTIONS:
                self.refuse(
                    node,
                    f"{names[0]} is computed by Python, not by the database: write {FUNCTIONS[names[0]]}.",
                )
            hint = nearest(names[0], KNOWN)
            if names[0] == self.text:
                hint += f" A text as the value has quotes: '\"{names[0]}\"'."
            self.refuse(node, f"{names[0]} is not a known name.{hint}")
        path = ".".join(names)
        try:
            return import_path(path), path, f"import {path.rpartition('.')[0]}"
        except InvalidExpression as error:
            self.refuse(node, str(error))

    def refuse_attribute(self, node: ast.expr, first: str, rest: list[str]) -> NoReturn:
        owner = KNOWN[first][0].value
        if not rest:
            self.refuse(node, f"{first} is a module, not a value: write {first}.something.")
        self.refuse(node, f"{first} has no {'.'.join(rest)}.{nearest(rest[0], dir(owner))}")

    def check_function(self, node: ast.Call) -> None:
        """Refuse a function that has no module: say where the project's own ones stand."""
        names = _chain(node.func)
        if len(names) == 1 and names[0] not in KNOWN and not nearest(names[0], KNOWN):
            app_label = self.model._meta.app_label
            self.refuse(
                node,
                f"{names[0]} is not a function of the database that is known here. For one of Python's, write a "
                f"function of one row into {app_label}/populate.py, and name it: {app_label}.populate.{names[0]}",
            )

    def check_own(self, node: ast.Call, called: Any) -> None:
        """Refuse a call of the project's own function: it would run here, and whenever the migration is loaded."""
        first, *rest = _chain(node.func) or [""]
        if first and first not in KNOWN and not isinstance(called, type):
            path = ".".join([first, *rest])
            self.refuse(
                node,
                f"{path}() is called once, when the migration is loaded, and every row would get the same value. "
                f"Name the function without parentheses: {path}",
            )

    def check_call(self, node: ast.Call, called: Any) -> None:
        if called in FUNCTION_KINDS and node.args and isinstance(node.args[0], ast.Constant):
            self.refuse(
                node.args[0], f"{called.__name__} needs a function: write its dotted path without quotes."
            )
        if not isinstance(called, Hashable):
            return
        typed = ast.unparse(node.func)
        if called in PER_ROW:
            self.refuse(
                node,
                f"{typed}() is called once, and every row would get the same value: write {PER_ROW[called]}, "
                "without the parentheses, to have it called for each row.",
            )
        if called in CLOCKS:
            self.refuse(
                node,
                f"{typed}() is called whenever the migration is loaded: write {CLOCKS[called]}, "
                "which the database computes.",
            )

    def check_alone(self, node: ast.expr) -> None:
        value, _, _ = self.find(node)
        if isinstance(value, type) and value.__module__ != "builtins":
            self.refuse(node, f"{self.text} is a class: write {self.text}(), with what it needs in between.")
        try:
            sources.resolve(value)
        except InvalidPopulate as error:
            self.refuse(node, str(error))

    def check_names(self, node: ast.Call, called: Any) -> None:
        if not isinstance(called, type):
            return
        texts = [(arg, arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        paths = [(arg, value) for arg, value in texts if isinstance(value, str)]
        if called is models.F:
            self.check_paths(paths)
        elif issubclass(called, FromRelated):
            for arg, path in paths[:1]:
                self.check_related(arg, path)
        elif issubclass(called, models.Func):
            # The second argument of Trunc and Extract is a part of the date.
            self.check_paths(paths[:1] if issubclass(called, TimezoneMixin) else paths, called)
        elif issubclass(called, models.Q | models.When):
            words = ("then", "condition", "_connector", "_negated")
            self.check_paths([(k, k.arg) for k in node.keywords if k.arg and k.arg not in words])

    def check_paths(self, paths: Iterable[tuple[ast.AST, str]], function: type | None = None) -> None:
        for node, path in paths:
            problem = column_problem(path, self.model, self.field)
            if problem and function:
                value = double_quoted(f"Value({path!r})")
                problem += f" {function.__name__} takes a text for a field's name; a text itself is {value}."
            if problem:
                self.refuse(node, problem)

    def check_related(self, node: ast.expr, path: str) -> None:
        problem = related_problem(path, self.model)
        if problem:
            self.refuse(node, problem)


def _walk(value: Any, names: list[str]) -> Any:
    for name in names:
        value = getattr(value, name, None)
    return value
