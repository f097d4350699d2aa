"""The class that users inherit from."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from django import forms
from django.apps import apps
from django.db import Error, connections, transaction
from django.db.models import Model, Q, QuerySet
from django.db.models.deletion import Collector

from safemigrate.backends import for_connection
from safemigrate.engine.batch_runner import work_for
from safemigrate.engine.batches import Range, Target
from safemigrate.engine.differs import Differs
from safemigrate.exceptions import InvalidBackfill, InvalidParameters, TryAgain
from safemigrate.formatting import nearest
from safemigrate.populate.sources import ByFunction, InBatches, InDatabase, InPython, LeftAsItIs
from safemigrate.types import field_of

#: Under this name a run keeps the names of the parameters that are not to be shown.
SENSITIVE = "_sensitive"
#: What is no fault of a row: the database's errors are seen to by the engine.
PASSED_ON = (Error, TryAgain)
#: The rows that are tried, and rolled back, before a run: do the values that are written end the condition?
TRIED = 20
#: The seconds after which a clock shows another time on every database: SQLite's counts milliseconds.
MOMENT = 0.002


class Backfill:
    """Rows of `model` that are to be changed, and how. One instance is one run on the database `using`.

    Which rows: those of `where`, a Q, until none fulfils it; or those of `queryset()`, each once; or else all.
    How, one of four: `values`, a dict of expressions, in one UPDATE for each batch; `row(self, instance)`, which
    returns the value of the one field in `fields`, a dict of several, or None for a row that stays as it is;
    `batch(self, rows)`, which does with the query `rows` what it likes; `delete = True`, or "raw" to leave out
    Django's signals and cascades.

    Each batch is a transaction, so that a run can be stopped, killed and resumed at any moment. With `where`, a row
    that is done does not fulfil it any more, and what the site writes in the meantime wins. `only_changed`, with
    `values`: rows that have these values already are not written, and it is done when all have them. Where neither
    they nor `delete` say what is left, each row is done once: the position is saved in the transaction of the batch
    where the runs are kept in the same database (SAFEMIGRATE_RUNS_DATABASE); elsewhere a batch may be done twice when
    the process is killed. Rows that come in after the start are then not part of the run.

    `form` is a form of its parameters, which are in `self.cleaned_data`; those in `sensitive` are kept, and not shown.
    `before()` is called by each process that begins or resumes a run, and each task of a queue, before its first batch;
    `after()` by the one that did the last: both may be called again after a kill. `retry_on`: exceptions that pass,
    after which a batch is tried again; all others make a bad row, and the run goes on up to `max_bad_rows` of them.
    """

    model: ClassVar[type[Model] | str | None] = None
    where: ClassVar[Q | None] = None
    values: ClassVar[Mapping[str, Any] | None] = None
    fields: ClassVar[Sequence[str]] = ()
    delete: ClassVar[bool | str] = False
    only_changed: ClassVar[bool] = True

    form: ClassVar[type[forms.Form] | None] = None
    sensitive: ClassVar[Sequence[str]] = ()

    databases: ClassVar[Sequence[str]] = ("default",)
    executor: ClassVar[str] = ""
    throttles: ClassVar[Sequence[str] | None] = None
    batch_size: ClassVar[int | None] = None
    max_bad_rows: ClassVar[int | None] = None
    retry_on: ClassVar[tuple[type[Exception], ...]] = ()

    class Meta:
        abstract = True
        permission = ""  # "app.codename" of who may start it, beside safemigrate.start_backfillrun

    def __init__(self, parameters: Mapping[str, Any] | None = None, *, using: str = "default") -> None:
        self.parameters = {name: value for name, value in (parameters or {}).items() if name != SENSITIVE}
        self.using = using
        self.cleaned_data = self._cleaned()

    def queryset(self) -> QuerySet[Any]:
        """Return the rows that are to be done, where it takes more than a `where`: parameters, or the time."""
        raise NotImplementedError

    def row(self, instance: Any) -> Any:
        """Return what is to be written to the row."""
        raise NotImplementedError

    def batch(self, rows: QuerySet[Any]) -> object:
        """Do something with the rows of a batch."""
        raise NotImplementedError

    def before(self) -> None:
        """Do something before the first batch."""

    def after(self) -> None:
        """Do something after the last batch."""

    # What the engine gets of it

    @classmethod
    def label(cls) -> str:
        """Return what it is called: the app's label and the class."""
        config = apps.get_containing_app_config(cls.__module__)
        return f"{config.label if config else cls.__module__}.{cls.__name__}"

    @classmethod
    def summary(cls) -> str:
        """Return the first line of its docstring."""
        text = cls.__doc__ if cls.__doc__ != Backfill.__doc__ else ""
        return inspect.cleandoc(text or "").partition("\n")[0]

    @classmethod
    def permission(cls) -> str:
        return str(getattr(cls.Meta, "permission", ""))

    @classmethod
    def has(cls, name: str) -> bool:
        """Does the class define this method?"""
        return getattr(cls, name) is not getattr(Backfill, name)

    def _chosen(self) -> QuerySet[Any] | None:
        """Return what queryset() returns, if there is one. Raises InvalidBackfill where its rows have no own keys."""
        if not self.has("queryset"):
            return None
        rows: Any = self.queryset()
        if why := _not_gone_through(rows):
            raise InvalidBackfill(
                f"{self.label()}: queryset() {why}, and its rows are gone through by their primary key. "
                "Return a query of a model with filter(), exclude() or annotate() alone."
            )
        return rows.order_by().using(self.using)  # type: ignore[no-any-return]

    def found_model(self) -> type[Model]:
        if self.model is None:
            chosen = self._chosen()
            assert chosen is not None, "problems() says that one of them has to be there"
            return chosen.model
        return apps.get_model(self.model) if isinstance(self.model, str) else self.model

    def names(self) -> list[str]:
        """Return the fields that it writes."""
        return list(self.values or self.fields)

    def target(self) -> Target:
        """Return the rows, and what says which of them are left."""
        model = self.found_model()
        chosen = self._chosen()
        where = self.where
        if where is not None and _joins(QuerySet(model, using=self.using).filter(where)):
            # An UPDATE by key cannot repeat it, so the rows are chosen by it, and locked until they are written.
            chosen, where = QuerySet(model, using=self.using).filter(where), None
        is_cursor = self.where is None and not (self.delete or self._differs())
        if differ := self._differs():
            where = differ if where is None else where & differ
        given = self.parameters | ({SENSITIVE: list(self.sensitive)} if self.sensitive else {})
        return Target(
            model,
            self.names(),
            [],
            self.using,
            apps,
            where=where,
            backfill=self.label(),
            parameters=given,
            chosen=chosen,
            is_cursor=is_cursor,
        )

    def source(self) -> InBatches:
        """Return what is done to a batch."""
        made_of = [sorted(self.parameters.items())]
        if self.values:
            return InDatabase(self.values, f"values for {', '.join(self.values)}")
        if self.has("row"):
            named = f"row() for {', '.join(self.fields)}"
            return InPython(self._rows, named, made_of=[type(self).row, *self.fields, *made_of])
        if self.has("batch"):
            return ByFunction(self._batch, "batch()", [type(self).batch, *made_of])
        rows: QuerySet[Any] = QuerySet(self.found_model(), using=self.using)
        raw = self.delete == "raw" or Collector(using=self.using).can_fast_delete(rows)
        way = self._delete_raw if raw else self._delete
        return ByFunction(way, "delete", [str(self.delete), *made_of], is_statement=raw)

    def refuse_repeated_keys(self) -> None:
        """Raise InvalidBackfill where two rows may have the same primary key."""
        model = self.found_model()
        if not for_connection(connections[self.using]).has_unique_key(model):
            raise InvalidBackfill(
                f"{self.label()} on {self.using}: no unique index of {model._meta.db_table} covers the primary key of "
                "the model, so that two rows may have the same one, and the rows cannot be gone through by it. Give "
                "the table its primary key."
            )

    def refuse_endless(self) -> None:
        """Raise InvalidBackfill where rows still fulfil the condition after they were written.

        Writes to some rows, and takes it back. A function is not called: what it does may not be rolled back.
        """
        target = self.target()
        if not (target.is_marked and self.values):
            return
        batches = target.batches
        with transaction.atomic(self.using):
            keys = batches.remaining_keys(TRIED)
            if not keys:
                return
            some = Range.of(keys)
            work = work_for(target, self.source(), for_connection(connections[self.using]))
            try:
                work(batches, some)
                time.sleep(MOMENT)
                left = batches.todo.filter(some.condition).count()
            except Exception:  # noqa: BLE001  the run itself says what it is, and of which row
                left = 0
            transaction.set_rollback(True, using=self.using)
        if left:
            alone = self.where is None
            why = "Let the condition name what the values change."
            if alone:
                why = (
                    "The value may be another one each time (a random number, the time now), or the column may not "
                    "hold it as it is. To write each row once: only_changed = False."
                )
            raise InvalidBackfill(
                f"{self.label()} on {self.using} would never end: of {len(keys)} rows that were tried, and rolled "
                f"back, {left} still fulfil the condition after the values were written. {why}"
            )

    def _cleaned(self) -> dict[str, Any]:
        if self.form is None:
            if self.parameters:
                raise InvalidParameters(
                    f"{self.label()} takes no parameters ({', '.join(self.parameters)} given): it has no form."
                )
            return {}
        form = self.form(data=self.parameters)
        unknown = [name for name in self.parameters if name not in form.fields]
        if unknown:
            hint = nearest(unknown[0], form.fields)
            raise InvalidParameters(
                f"{self.label()} has no parameter {unknown[0]}.{hint} It takes: {', '.join(form.fields)}."
            )
        if not form.is_valid():
            found = [f"  {name}: {' '.join(map(str, texts))}" for name, texts in form.errors.items()]
            first = next(
                (name for name in form.errors if name in form.fields), next(iter(form.fields), "name")
            )
            raise InvalidParameters(
                f"The parameters of {self.label()} are not right:\n"
                + "\n".join(found)
                + f"\nGive each as --set {first}=..."
            )
        return _Cleaned(form.cleaned_data, label=self.label())

    def _differs(self) -> Q | None:
        """Return the condition that a row has another value than would be written, None where it is not asked."""
        if not (self.values and self.only_changed):
            return None
        found = Q()
        for name, value in self.values.items():
            found |= Q(Differs(field_of(self.found_model(), name), value))
        return found

    # What it does to rows

    def _rows(self, rows: Sequence[Any], prepared: Any) -> list[Any]:
        """Return for each row its values in the order of the fields, or the exception that stands for it."""
        return [self._row(row) for row in rows]

    def _row(self, row: Any) -> Any:
        with self._tries_again():
            try:
                result = self.row(row)
                return LeftAsItIs() if result is None else self._in_order(row, result)
            except Exception as error:
                if isinstance(error, (*self.retry_on, *PASSED_ON)):
                    raise
                return error  # Whatever the function raises is one bad row.

    def _in_order(self, row: Any, result: Any) -> tuple[Any, ...]:
        if len(self.fields) == 1 and not (isinstance(result, Mapping) and set(result) == set(self.fields)):
            return (result,)
        if not isinstance(result, Mapping) or not set(result) <= set(self.fields):
            raise ValueError(f"returned {result!r}, which is no dict of {', '.join(self.fields)}")
        # A field that the dict does not name keeps its value: the row is locked.
        return tuple(
            result.get(name, getattr(row, field_of(type(row), name).attname)) for name in self.fields
        )

    def _batch(self, rows: QuerySet[Any]) -> None:
        with self._tries_again():
            self.batch(rows)

    def _delete(self, rows: QuerySet[Any]) -> None:
        rows.delete()

    def _delete_raw(self, rows: QuerySet[Any]) -> int:
        return rows.order_by()._raw_delete(self.using)

    @contextmanager
    def _tries_again(self) -> Iterator[None]:
        """Turn what passes, as the class says, into TryAgain."""
        try:
            yield
        except self.retry_on as error:
            raise TryAgain(f"{type(error).__name__}: {error}") from error


class _Cleaned(dict[str, Any]):
    """The parameters, which say in words that there is none of a name."""

    def __init__(self, given: Mapping[str, Any], *, label: str) -> None:
        super().__init__(given)
        self.label = label

    def __missing__(self, name: str) -> Any:
        raise InvalidParameters(
            f"{self.label} reads self.cleaned_data[{name!r}], and its form has no field of this name."
            f"{nearest(name, self)} It has: {', '.join(self)}."
        )


def _not_gone_through(rows: Any) -> str:
    """Return why rows cannot be gone through by their key, "" where they can."""
    if not isinstance(rows, QuerySet):
        return "returns None" if rows is None else f"returns a {type(rows).__name__}"
    query = rows.query
    found = {
        "is cut by a slice": query.is_sliced,
        "has distinct()": query.distinct,
        "is a union, or the like": bool(query.combinator),
        "returns no instances: it has values() or values_list()": rows._fields is not None,  # type: ignore[attr-defined]
    }
    return next((why for why, is_so in found.items() if is_so), "")


def _joins(rows: QuerySet[Any]) -> bool:
    """Does the query read other tables, or other rows, beside those that it returns?"""
    query = rows.query
    return len([alias for alias in query.alias_map if query.alias_refcount[alias]]) > 1
