"""The kinds of populate that users write."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db.models import Model, OuterRef, QuerySet, Subquery
from django.utils.deconstruct import deconstructible

from safemigrate.exceptions import InvalidPopulate


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

    def expression(self, model: type[Model]) -> Subquery:
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

    def _relation(self, model: type[Model], name: str) -> Any:
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
        return f"the expression that {name_of(self.function)} returns"


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
        return f"{name_of(self.function)}(row)"


@deconstructible(path="safemigrate.populate.PerBatch")
class PerBatch(PerRow):
    """A function of a list of rows that returns their values in the same order."""

    def __str__(self) -> str:
        return f"{name_of(self.function)}(rows)"


def arity(function: Callable[..., Any]) -> int | None:
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
    if arity(function) != wanted:
        raise InvalidPopulate(f"{kind} needs a function {form}; {name_of(function)} takes other arguments.")


def _names(argument: str, names: Any) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidPopulate(f'{argument} must be a list of names: {argument}=["{names}"].')
    return tuple(names)


def name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
