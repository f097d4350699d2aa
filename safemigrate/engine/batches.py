"""A table cut into ranges of its primary key, each with both ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.db import DatabaseError, connections
from django.db.models import Model, Q, QuerySet
from django.db.transaction import atomic

from safemigrate.backends import for_connection

Result = TypeVar("Result")

#: The most keys that one statement names.
MAX_KEYS = 1_000


@dataclass(frozen=True)
class Range:
    """The rows with first <= key <= last, or first < key where `after` is set.

    `size` is how many keys were asked for; 0 where the range was made otherwise, and says nothing of the pace.
    Where `keys` are given, few of a long range, it is these alone.
    """

    first: Any
    last: Any
    after: bool = False
    size: int = field(default=0, compare=False)
    keys: tuple[Any, ...] = ()

    @classmethod
    def of(cls, keys: Sequence[Any]) -> Range:
        return cls(keys[0], keys[-1], keys=tuple(keys))

    @property
    def condition(self) -> Q:
        if self.keys:
            return Q(pk__in=self.keys)
        return Q(**{"pk__gt" if self.after else "pk__gte": self.first, "pk__lte": self.last})


@dataclass(frozen=True)
class Target:
    """The rows that are to be done: of a model, as it is in the migration's state, on one database.

    What is left to do is said by one of three marks. NULL: `null_fields` are those of the fields that hold NULL where
    a row is still to be filled; `once` those that were so when the fill was done first, and are required since. Both
    keep a value that they have; the other fields are rewritten along with them. `where`: this condition says it, and
    all fields are rewritten. Cursor: nothing in a row says it; each row is done once, in the order of the keys, and
    only the position that is saved with the run says how far it is.

    `leaves_null`: a row whose value is None stays as it is, and is no bad row. `mistaken`: beside those that are NULL,
    the rows that fulfil this hold a value which is not theirs, and are to be filled.

    `backfill` is the label of the Backfill whose rows they are, "" in a migration; `parameters` what it was given;
    `chosen` its rows, where it chose them by a query of its own.
    """

    model: type[Model]
    names: Sequence[str]
    null_fields: Sequence[str]
    alias: str
    apps: Any
    once: Sequence[str] = ()
    where: Q | None = None
    backfill: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    chosen: QuerySet[Any] | None = None
    is_cursor: bool = False
    leaves_null: bool = False
    mistaken: Q = field(default_factory=Q)

    @property
    def mark(self) -> Q:
        """Return the condition that a row fulfils as long as it is to be filled."""
        if self.where is not None:
            return self.where
        return null_in(self.null_fields) | self.mistaken if self.mistaken else null_in(self.null_fields)

    @property
    def write_mark(self) -> Q:
        """Return the condition that a write by key repeats: none where the row is locked since it was read."""
        return Q() if self.backfill else self.mark

    @property
    def is_marked(self) -> bool:
        """Does anything say of a row that it is still to be filled?"""
        return bool(self.null_fields or self.where is not None or (self.backfill and not self.is_cursor))

    @property
    def batches(self) -> Batches:
        return Batches(self.model, self.alias, self.mark, self.chosen)

    @property
    def label(self) -> str:
        return self.backfill or f"{self.model._meta.label}.{'+'.join(self.names)}"

    @property
    def kept(self) -> list[str]:
        if self.where is not None or self.backfill or self.mistaken:
            return []
        return [name for name in self.names if name in self.null_fields or name in self.once]


def null_in(names: Sequence[str]) -> Q:
    """Return the condition that at least one of the fields is NULL; of no fields, one that each row fulfils."""
    return Q(*((f"{name}__isnull", True) for name in names), _connector=Q.OR)


@dataclass(frozen=True)
class Batches:
    """The rows of a model on one database, seen by primary key and by the mark of those that are still to be filled."""

    model: type[Model]
    alias: str
    mark: Q = field(default_factory=Q)
    chosen: QuerySet[Any] | None = None

    @property
    def rows(self) -> QuerySet[Any]:
        # Not a manager, which may hide rows, and without Meta.ordering.
        return QuerySet(self.model, using=self.alias).order_by()

    @property
    def todo(self) -> QuerySet[Any]:
        rows = self.rows if self.chosen is None else self.chosen.using(self.alias).order_by()
        return rows.filter(self.mark)

    @property
    def _todo_keys(self) -> QuerySet[Any]:
        """Return the keys in order. A query that joins other tables may have a row more than once."""
        keys = self.todo.order_by("pk").values_list("pk")
        return keys if self.chosen is None else keys.distinct()

    def any_left(self) -> bool:
        return self._patiently(self.todo.values_list("pk")[:1].exists)

    def count(self) -> int:
        """Count the rows to fill, by reading the table once."""
        return self._patiently((self.todo if self.chosen is None else self._todo_keys).count)

    def first_todo(self) -> Any:
        """Return the smallest key of a row to fill, or None. May read the table once."""
        return self._patiently(lambda: self._key(self.todo.order_by("pk")))

    def last(self) -> Any:
        """Return the largest key of all, or None on an empty table."""
        return self._key(self.rows.order_by("-pk"))

    def next(self, after: Any, last: Any, size: int, *, inclusive: bool = False) -> Range | None:
        """Return the range of the next `size` keys after `after`, up to `last`; None when there are none.

        Its end is found by the key alone: a search for rows that are NULL would read on and on through
        rows that are filled already.
        """
        rest = self.rows.filter(**{"pk__gte" if inclusive else "pk__gt": after}, pk__lte=last)
        end = self._key(rest.order_by("pk")[size - 1 : size])
        if end is not None:
            return Range(after, end, not inclusive, size)
        return Range(after, last, not inclusive, size) if inclusive or after != last else None

    def remaining_keys(self, limit: int) -> list[Any]:
        """Return up to `limit` keys of rows to fill, in order, found by reading the table once."""
        return self._patiently(lambda: [key for (key,) in self._todo_keys[:limit]])

    def _patiently(self, look: Callable[[], Result]) -> Result:
        return for_connection(connections[self.alias]).patiently(look)

    def halves(self, batch: Range) -> list[Range]:
        """Return the range cut in two by its rows to fill; itself when there is one left at the most."""
        keys = self.keys(batch)
        if len(keys) < 2:
            return [Range(key, key) for key in keys]
        middle = len(keys) // 2
        make = Range.of if batch.keys else lambda part: Range(part[0], part[-1])
        return [make(keys[:middle]), make(keys[middle:])]

    def keys(self, batch: Range, *, lock: bool = False) -> list[Any]:
        """Return the keys of the rows to fill in the range, in order; `lock` them until the end of the transaction."""
        rows = self.todo.filter(batch.condition).order_by("pk")
        return list(dict.fromkeys(keys_of(locked(rows) if lock else rows)))

    def round_locked(self, batch: Range) -> tuple[list[Range], list[Any]]:
        """Return the parts of a batch that can be written while another session has rows locked, and those rows' keys.

        The parts name their keys: InnoDB locks all that it reads, and at the end of a range the row behind it too. Of
        a few keys in a small table it may still read the rest, and so they become ever fewer. Elsewhere, where none of
        the rows is locked, it was something else that was waited for, and all of them are returned as locked.
        """
        keys = self.keys(batch)
        if len(keys) < 2:  # Of MariaDB it cannot be asked.
            return [], keys
        free = self._free(batch) if self._skips_locked else set()
        known = set(keys) if free is None else free
        named = [key for key in keys if key in known]
        locked = [key for key in keys if key not in known]
        size = MAX_KEYS
        if free is None or (batch.keys and not locked):
            if not for_connection(connections[self.alias]).locks_what_it_reads:
                return [], keys
            size = min((len(keys) + 1) // 2, MAX_KEYS)
        return [Range.of(named[start : start + size]) for start in range(0, len(named), size)], locked

    @property
    def _skips_locked(self) -> bool:
        return bool(connections[self.alias].features.has_select_for_update_skip_locked)

    def _free(self, batch: Range) -> set[Any] | None:
        """Return the keys of the rows that can be had at once, None where the server cannot say which.

        They are locked only while they are read.
        """
        rows = locked(self.todo.filter(batch.condition), no_key=True, skip_locked=True)
        try:
            with atomic(self.alias):
                return set(keys_of(rows))
        except DatabaseError as error:
            if not for_connection(connections[self.alias]).is_skip_failed(error):
                raise
            return None

    @staticmethod
    def _key(rows: QuerySet[Any]) -> Any:
        return next(iter(keys_of(rows[:1])), None)


def locked(rows: QuerySet[Any], *, no_key: bool = False, skip_locked: bool = False) -> QuerySet[Any]:
    """Return a query that locks its rows, and none of the tables that it joins, where the database can.

    With `no_key`, where their keys stay as they are, rows that refer to them may come in in the meantime.
    """
    features = connections[rows.db].features
    if not features.has_select_for_update:
        return rows
    # Of a composite key Django cannot say "self": there the rows of both tables are locked.
    joins = len(rows.query.alias_map) > 1 and len(rows.model._meta.pk_fields) == 1
    return rows.select_for_update(
        of=("self",) if joins and features.has_select_for_update_of else (),
        no_key=no_key and features.has_select_for_no_key_update,
        skip_locked=skip_locked,
    )


def keys_of(rows: QuerySet[Any]) -> list[Any]:
    """Return the primary keys of the rows, a composite one as a tuple."""
    return [key for (key,) in rows.values_list("pk")]
