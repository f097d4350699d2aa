"""How old rows get their value: the kinds of `populate`, told apart by what they are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import Error
from django.db.models import Model, OuterRef, QuerySet, Subquery
from django.utils.deconstruct import deconstructible
from django.utils.module_loading import import_string

from safemigrate.exceptions import InvalidPopulate

DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
CHOICES = (
    "populate can be: a value; a Django expression such as F('pub_date') + timedelta(days=30); a function "
    "of no arguments, called once per row; a function of one row; a function of (apps, schema_editor), as "
    "migrations.RunPython takes; FromRelated, FromApps, PerRow or PerBatch from safemigrate.populate; or "
    "the dotted path of one of these."
)


# What users write


@deconstructible(path="safemigrate.populate.FromRelated")
class FromRelated:
    """Copy a value from a related row: FromRelated("page__site") takes page.site.

    The path goes along foreign keys and one-to-one fields, forwards, and ends in a column. A row whose
    path ends in NULL gets no value, and is reported.
    """

    def __init__(self, path: str) -> None:
        if not isinstance(path, str) or "__" not in path.strip("_"):
            raise InvalidPopulate(
                f"FromRelated({path!r}): give the way to a related row's field with two underscores between "
                'the names, as in FromRelated("page__site").'
            )
        self.path = path

    def __str__(self) -> str:
        return f"{self.path.replace('__', '.')} of the related row"

    def expression(self, model: Any) -> Subquery:
        """Return the subquery that reads the value, for use on `model`'s rows."""
        first, _, rest = self.path.partition("__")
        relation = self._relation(model, first)
        target = relation.target_field.attname
        related: QuerySet[Any] = QuerySet(relation.remote_field.model).filter(
            **{target: OuterRef(relation.attname)}
        )
        try:
            return Subquery(related.order_by().values(rest)[:1])
        except FieldError as error:
            raise InvalidPopulate(f"FromRelated({self.path!r}): {error}") from error

    def _relation(self, model: Any, name: str) -> Any:
        try:
            relation = model._meta.get_field(name)
        except FieldDoesNotExist as error:
            raise InvalidPopulate(f"FromRelated({self.path!r}): {error}.") from error
        if not (relation.many_to_one or (relation.one_to_one and relation.concrete)):
            raise InvalidPopulate(
                f"FromRelated({self.path!r}): {name} is not a foreign key of {model._meta.label}, so there may "
                "be many related rows or none. Say which one you mean with FromApps and a Subquery."
            )
        return relation


@deconstructible(path="safemigrate.populate.FromApps")
class FromApps:
    """An expression that needs the models as they were: `f(apps)` returns it, with `apps.get_model()`."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        _check_arity("FromApps", function, 1, "f(apps)")

    def __str__(self) -> str:
        return f"the expression that {_name(self.function)} returns"


@deconstructible(path="safemigrate.populate.Suffix")
class Suffix:
    """Make a value unique by a number behind it: "title", "title-2", "title-3", within max_length."""

    def __init__(self, separator: str = "-") -> None:
        self.separator = separator

    def candidate(self, value: str, number: int, max_length: int | None) -> str:
        """Return the `number`-th form of `value`; the first is the value itself, cut to `max_length`."""
        ending = "" if number == 1 else f"{self.separator}{number}"
        kept = value if max_length is None else value[: max_length - len(ending)]
        return kept + ending


@deconstructible(path="safemigrate.populate.PerRow")
class PerRow:
    """A function of one row, with its reading spelled out.

    `only` names the columns to read (default: all); `select_related` the foreign keys to read along;
    `prepare(apps, alias)` runs once before the first row, and its result is the function's second
    argument; `unique=Suffix("-")` makes the values unique within the column.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        only: Sequence[str] = (),
        select_related: Sequence[str] = (),
        prepare: Callable[[Any, str], Any] | None = None,
        unique: Suffix | None = None,
    ) -> None:
        self.function, self.prepare, self.unique = function, prepare, unique
        self.only, self.select_related = _names("only", only), _names("select_related", select_related)
        self._check(type(self).__name__)

    def _check(self, kind: str) -> None:
        form = "f(row, prepared)" if self.prepare else "f(row)"
        _check_arity(kind, self.function, 2 if self.prepare else 1, form)
        if self.prepare:
            _check_arity(f"{kind}'s prepare", self.prepare, 2, "prepare(apps, alias)")
        if self.unique is not None and not isinstance(self.unique, Suffix):
            raise InvalidPopulate(f'unique must be Suffix("-") or another Suffix, not {self.unique!r}.')

    def __str__(self) -> str:
        return f"{_name(self.function)}(row)"


@deconstructible(path="safemigrate.populate.PerBatch")
class PerBatch(PerRow):
    """A function of a list of rows that returns their values in the same order."""

    def __str__(self) -> str:
        return f"{_name(self.function)}(rows)"


# What the engine and the operations get


@dataclass(frozen=True)
class InDatabase:
    """Values that the database computes: `assignments(model, apps)` gives them by field."""

    values: Mapping[str, Any]
    title: str

    def assignments(self, model: Any, apps: Any) -> dict[str, Any]:
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
    annotations: Mapping[str, Any] = field(default_factory=dict)

    def read(self, rows: QuerySet[Any], apps: Any) -> QuerySet[Any]:
        """Return `rows` with what the function needs, and no more where it says so."""
        if self.annotations:
            made = {name: _expression(value, rows.model, apps) for name, value in self.annotations.items()}
            rows = rows.annotate(**made)
        if self.select_related:
            rows = rows.select_related(*self.select_related)
        return rows.only(*self.only) if self.only else rows


@dataclass(frozen=True)
class AsWritten:
    """A function of (apps, schema_editor), to be run by migrations.RunPython."""

    function: Callable[[Any, Any], None]
    title: str


Source = InDatabase | InPython | AsWritten


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
    arity, in_order = _arity(function), _in_order(names)
    if arity == 0:
        return InPython(
            lambda keys, prepared: _each(lambda key: in_order(function()), keys),
            f"{_name(function)}(), once per row",
            keys_only=True,
            function=function,
        )
    if arity == 1:
        return _per_row(PerRow(function), names)
    if arity == 2:
        return AsWritten(function, f"{_name(function)}(apps, schema_editor)")
    wants = "with other arguments" if arity is None else f"of {arity} arguments"
    raise InvalidPopulate(f"{_name(function)} is a function {wants}. {CHOICES}")


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
                f"{_name(kind.function)} got {len(rows)} rows and returned {len(values)} values. PerBatch needs "
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


def _mixed(parts: Mapping[str, Source], title: str) -> InPython:
    """Compute some values in Python and read the others, computed by the database, along with the row."""
    given = {name: part.values[name] for name, part in parts.items() if isinstance(part, InDatabase)}
    constants = {name: value for name, value in given.items() if not _is_computed(value)}
    annotations = {f"safemigrate_{name}": value for name, value in given.items() if name not in constants}

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

    return InPython(lambda rows, prepared: _each(one, rows), title, annotations=annotations)


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


def _expression(value: Any, model: Any, apps: Any) -> Any:
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


def _arity(function: Callable[..., Any]) -> int | None:
    """Return how many positional arguments the function must get; None where it wants something else."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0  # Written in C without a signature: dict, for example.
    if any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        return None
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not required and any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return len(required)


def _check_arity(kind: str, function: Any, wanted: int, form: str) -> None:
    if not callable(function):
        raise InvalidPopulate(f"{kind} needs a function {form}, not {function!r}.")
    if _arity(function) != wanted:
        raise InvalidPopulate(f"{kind} needs a function {form}; {_name(function)} takes other arguments.")


def _names(argument: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidPopulate(f'{argument} must be a list of names: {argument}=["{names}"].')
    return tuple(names)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _title(populate: Any) -> str:
    return str(populate) if _is_computed(populate) else repr(populate)


__all__ = ["FromApps", "FromRelated", "PerBatch", "PerRow", "Suffix"]
