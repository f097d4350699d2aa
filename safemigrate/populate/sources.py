"""What the engine and the operations get of a populate: who computes the values, and how."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any

from django.db import Error
from django.db.models import Model, QuerySet
from django.utils.module_loading import import_string

from safemigrate.exceptions import InvalidPopulate
from safemigrate.populate.kinds import FromApps, FromRelated, PerBatch, PerRow, Suffix, arity, name_of

DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
CHOICES = (
    "populate can be: a value; a Django expression such as F('pub_date') + timedelta(days=30); a function "
    "of no arguments, called once per row; a function of one row; a function of (apps, schema_editor), as "
    "migrations.RunPython takes; FromRelated, FromApps, PerRow or PerBatch from safemigrate.populate; or "
    "the dotted path of one of these."
)


@dataclass(frozen=True)
class InDatabase:
    """Values that the database computes: `assignments(model, apps)` gives them by field."""

    values: Mapping[str, Any]
    title: str

    def assignments(self, model: type[Model], apps: Any) -> dict[str, Any]:
        return {name: _expression(value, model, apps) for name, value in self.values.items()}


@dataclass(frozen=True)
class InPython:
    """Values that Python computes.

    `compute(rows, prepared)` returns, for each row, its values in the order of the fields, or the exception
    that it raised. Rows are instances, or keys alone where `keys_only`; then `function`, of no arguments, makes them.
    """

    compute: Callable[[Sequence[Any], Any], list[Any]]
    title: str
    keys_only: bool = False
    function: Callable[[], Any] | None = None
    only: Sequence[str] = ()
    select_related: Sequence[str] = ()
    prepare: Callable[[Any, str], Any] | None = None
    unique: Suffix | None = None
    annotations: Mapping[str, Any] = field(default_factory=dict)  # of what the database computes, by field
    typed: Callable[[str, Any], Any] = lambda name, value: value
    made_of: Sequence[Any] = ()  # what the user gave, by which it is distinguished from another

    def read(self, rows: QuerySet[Any], apps: Any) -> QuerySet[Any]:
        """Return `rows` with what the function needs, and no more where it says so."""
        if self.annotations:
            made = {name: _expression(value, rows.model, apps) for name, value in self.annotations.items()}
            rows = rows.annotate(**{f"safemigrate_{name}": self.typed(name, made[name]) for name in made})
        if self.select_related:
            rows = rows.select_related(*self.select_related)
        return rows.only(*self.only) if self.only else rows


@dataclass(frozen=True)
class AsWritten:
    """A function of (apps, schema_editor), to be run by migrations.RunPython."""

    function: Callable[[Any, Any], None]
    title: str


@dataclass(frozen=True)
class ByFunction:
    """A function that is given the rows of each batch, as a query, and does with them what it likes.

    It runs in the batch's transaction, so that it is done wholly or not at all, as far as it writes to this database.
    One that `is_statement` is a single statement with the condition of the rows, which returns how many it did: they
    need not be read and locked before it.
    """

    function: Callable[[QuerySet[Any]], Any]
    title: str
    made_of: Sequence[Any] = ()
    is_statement: bool = False


class LeftAsItIs(Exception):
    """What stands in place of the values of a row that the function left as it is."""


#: What the engine does in batches.
InBatches = InDatabase | InPython | ByFunction
Source = InBatches | AsWritten


def calls_function(source: Source) -> bool:
    """Is a function of the user's called with the rows of each batch?"""
    return not (isinstance(source, InDatabase) or (isinstance(source, ByFunction) and source.is_statement))


def fingerprint(source: Source, where: Any = None) -> str:
    """Return a text that differs for two sources which would give other values, as far as their own code shows.

    So does a condition, which would choose other rows.

    Functions are compared by what Python compiled them to, so the text begins with Python's version.
    """
    if isinstance(source, InDatabase):
        parts: list[Any] = [part for pair in source.values.items() for part in pair]
    else:
        parts = [source.function] if isinstance(source, AsWritten) else list(source.made_of)
    text = "\0".join(map(_essence, parts if where is None else [*parts, where]))
    return f"{sys.version_info.major}.{sys.version_info.minor}:{hashlib.sha256(text.encode()).hexdigest()}"


def _essence(part: Any) -> str:
    if isinstance(part, FromRelated):
        return f"FromRelated({part.path})"
    function = part.function if isinstance(part, FromApps) else part
    if not hasattr(function, "__code__"):
        return _plain(part)
    closed = inspect.getclosurevars(function).nonlocals.values()
    return "\0".join([_of_code(function.__code__), *map(_plain, [*closed, *(function.__defaults__ or ())])])


def _plain(value: Any) -> str:
    code = getattr(value, "__code__", None)
    # Without the address in memory.
    return _of_code(code) if isinstance(code, CodeType) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _of_code(code: CodeType) -> str:
    constants = [_of_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def check(populate: Any, names: Sequence[str]) -> None:
    """Raise InvalidPopulate unless `populate` is one of the kinds, for the fields `names`.

    A dotted path is only looked at, not imported: its module may be gone once the migration has run.
    """
    if not is_dotted_path(populate):
        resolve(populate, names)


def is_dotted_path(populate: Any) -> bool:
    return type(populate) is str and DOTTED_PATH.fullmatch(populate) is not None


def resolve(populate: Any, names: Sequence[str] = ("value",)) -> Source:
    """Return what is to be done for `populate`, importing it where it is a dotted path.

    Raises InvalidPopulate in words that name the choices.
    """
    if is_dotted_path(populate):
        return resolve(_imported(populate), names)
    if len(names) > 1 and isinstance(populate, Mapping):
        return _resolve_mapping(populate, names)
    if isinstance(populate, PerRow):
        return _per_row(populate, names)
    if callable(populate) and not _is_expression(populate):
        return _resolve_function(populate, names)
    if len(names) > 1:
        raise InvalidPopulate(
            f"Several fields ({', '.join(names)}) need a dict by field, or a function of one row that returns "
            f"one; {populate!r} is neither."
        )
    _check_value(populate)
    return InDatabase({names[0]: populate}, _title(populate))


def _imported(path: str) -> Any:
    try:
        found = import_string(path)
    except (ImportError, ValueError) as error:
        raise InvalidPopulate(
            f'"{path}" looks like a dotted path, but cannot be imported: {error}. If it is the text itself that '
            f'every row shall get, write Value("{path}").'
        ) from error
    if is_dotted_path(found):
        raise InvalidPopulate(f'"{path}" is again a dotted path ("{found}"). Give that one.')
    return found


def _resolve_function(function: Callable[..., Any], names: Sequence[str]) -> Source:
    wanted, in_order = arity(function), _in_order(names)
    if wanted == 0:
        return InPython(
            lambda keys, prepared: _each(lambda key: in_order(function()), keys),
            f"{name_of(function)}(), once per row",
            keys_only=True,
            function=function,
            made_of=[function],
        )
    if wanted == 1:
        return _per_row(PerRow(function), names)
    if wanted == 2:
        return AsWritten(function, f"{name_of(function)}(apps, schema_editor)")
    wants = "with other arguments" if wanted is None else f"of {wanted} arguments"
    raise InvalidPopulate(f"{name_of(function)} is a function {wants}. {CHOICES}")


def _per_row(kind: PerRow, names: Sequence[str]) -> InPython:
    if kind.unique and len(names) > 1:
        raise InvalidPopulate(
            "unique=Suffix(...) works on one field at a time. Populate that field by itself."
        )

    function, in_order = kind.function, _in_order(names)

    def many(rows: Sequence[Any], prepared: Any) -> list[Any]:
        more = (prepared,) if kind.prepare else ()
        if not isinstance(kind, PerBatch):
            return _each(lambda row: in_order(function(row, *more)), rows)
        values = list(function(rows, *more))
        if len(values) != len(rows):
            raise InvalidPopulate(
                f"{name_of(kind.function)} got {len(rows)} rows and returned {len(values)} values. PerBatch needs "
                "one value for each row, in the same order."
            )
        return _each(in_order, values)

    return InPython(
        many,
        str(kind),
        only=kind.only,
        select_related=kind.select_related,
        prepare=kind.prepare,
        unique=kind.unique,
        made_of=[kind.function, kind.prepare, *kind.only, "/", *kind.select_related],
    )


def _in_order(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Return what puts a function's result into the order of the fields."""
    if len(names) == 1:
        return lambda value: (value,)

    def ordered(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise ValueError(f"returned {value!r}, not a dict of {', '.join(names)}")
        return tuple(value[name] for name in names)

    return ordered


def _resolve_mapping(populate: Mapping[str, Any], names: Sequence[str]) -> Source:
    if set(populate) != set(names):
        raise InvalidPopulate(
            f"The dict has {', '.join(map(repr, populate)) or 'nothing'}, the operation fills "
            f"{', '.join(map(repr, names))}: they must be the same."
        )
    parts = {name: resolve(populate[name], [name]) for name in names}
    for name, part in parts.items():
        if isinstance(part, AsWritten) or (isinstance(part, InPython) and (part.prepare or part.unique)):
            raise InvalidPopulate(
                f"{name}: {part.title} cannot be one of several. Populate that field by itself."
            )
    title = "; ".join(f"{name}: {part.title}" for name, part in parts.items())
    if all(isinstance(part, InDatabase) for part in parts.values()):
        return InDatabase({name: part.values[name] for name, part in parts.items()}, title)  # type: ignore[union-attr]
    return _mixed(parts, title)


def read_first(source: InDatabase, typed: Callable[[str, Any], Any]) -> InPython:
    """Return a source of the same values that are read along with the rows, and written by their keys.

    `typed` returns an expression for a field in such a form that it is read as the field's values are.
    """
    parts = {name: InDatabase({name: value}, source.title) for name, value in source.values.items()}
    return replace(_mixed(parts, source.title), typed=typed)


def _mixed(parts: Mapping[str, Source], title: str) -> InPython:
    """Compute some values in Python and read the others, computed by the database, along with the row."""
    given = {name: part.values[name] for name, part in parts.items() if isinstance(part, InDatabase)}
    constants = {name: value for name, value in given.items() if not _is_computed(value)}
    annotations = {name: value for name, value in given.items() if name not in constants}

    def value_of(row: Any, name: str, part: Source) -> Any:
        if name in constants:
            return constants[name]
        if not isinstance(part, InPython):
            return getattr(row, f"safemigrate_{name}")
        (result,) = part.compute([row], None)
        if isinstance(result, Exception):
            raise result
        return result[0]

    def one(row: Any) -> tuple[Any, ...]:
        return tuple(value_of(row, name, part) for name, part in parts.items())

    made_of = [fingerprint(part) for part in parts.values()]
    return InPython(lambda rows, prepared: _each(one, rows), title, annotations=annotations, made_of=made_of)


def _each(function: Callable[[Any], Any], rows: Iterable[Any]) -> list[Any]:
    """Return the function's result for each row, or the exception that it raised."""
    results = []
    for row in rows:
        try:
            results.append(function(row))
        except Error:
            raise  # The engine tries again what passes, and splits the batch for what does not.
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises is one bad row, not the end.
            results.append(error)
    return results


def _expression(value: Any, model: type[Model], apps: Any) -> Any:
    if isinstance(value, FromRelated):
        return value.expression(model)
    if isinstance(value, FromApps):
        return value.function(apps)
    return value


def _is_expression(populate: Any) -> bool:
    return hasattr(populate, "resolve_expression") and not isinstance(populate, type)


def _is_computed(value: Any) -> bool:
    return _is_expression(value) or isinstance(value, FromRelated | FromApps)


def _check_value(populate: Any) -> None:
    if populate is None:
        raise InvalidPopulate(f"None is no value: it is what the column must not hold. {CHOICES}")
    if isinstance(populate, Model | QuerySet):
        raise InvalidPopulate(
            f"{type(populate).__name__} objects cannot be written into a migration. Give the primary key, or "
            f"FromApps with a Subquery. {CHOICES}"
        )


def _title(populate: Any) -> str:
    return str(populate) if _is_computed(populate) else repr(populate)
