"""A table cut into ranges of its primary key, each with both ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Model, Q, QuerySet


@dataclass(frozen=True)
class Range:
    """The rows with first <= key <= last, or first < key where `after` is set.

    `size` is how many keys were asked for; 0 where the range was made otherwise, and says nothing of the pace.
    """

    first: Any
    last: Any
    after: bool = False
    size: int = field(default=0, compare=False)

    @property
    def condition(self) -> Q:
        return Q(**{"pk__gt" if self.after else "pk__gte": self.first, "pk__lte": self.last})


@dataclass(frozen=True)
class Target:
    """What is to be filled: fields of a model, as it is in the migration's state, on one database.

    `null_fields` are those of the fields that hold NULL where a row is still to be filled; `once` those that were
    so when the fill was done first, and are required since. Both keep a value that they have; the other
    fields are rewritten along with them.
    """

    model: type[Model]
    names: Sequence[str]
    null_fields: Sequence[str]
    alias: str
    apps: Any
    once: Sequence[str] = ()

    @property
    def label(self) -> str:
        return f"{self.model._meta.label}.{'+'.join(self.names)}"

    @property
    def kept(self) -> list[str]:
        return [name for name in self.names if name in self.null_fields or name in self.once]


@dataclass(frozen=True)
class Batches:
    """The rows of a model on one database, seen by primary key and by what is still NULL.

    `null_fields` are the fields of which at least one is NULL in a row that is still to be filled.
    """

    model: type[Model]
    alias: str
    null_fields: Sequence[str]

    @property
    def rows(self) -> QuerySet[Any]:
        # Not a manager, which may hide rows, and without Meta.ordering.
        return QuerySet(self.model, using=self.alias).order_by()

    @property
    def todo(self) -> QuerySet[Any]:
        condition = Q()
        for name in self.null_fields:
            condition |= Q(**{f"{name}__isnull": True})
        return self.rows.filter(condition)

    def any_left(self) -> bool:
        return self.todo.values_list("pk")[:1].exists()

    def first_todo(self) -> Any:
        """Return the smallest key of a row to fill, or None. May read the table once."""
        return self._key(self.todo.order_by("pk"))

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
        return keys_of(self.todo.order_by("pk")[:limit])

    def halves(self, batch: Range) -> list[Range]:
        """Return the range cut in two by its rows to fill; itself when there is one left at the most."""
        keys = keys_of(self.todo.filter(batch.condition).order_by("pk"))
        if len(keys) < 2:
            return [Range(key, key) for key in keys]
        middle = len(keys) // 2
        return [Range(keys[0], keys[middle - 1]), Range(keys[middle], keys[-1])]

    @staticmethod
    def _key(rows: QuerySet[Any]) -> Any:
        return next(iter(keys_of(rows[:1])), None)


def keys_of(rows: QuerySet[Any]) -> list[Any]:
    """Return the primary keys of the rows, a composite one as a tuple."""
    return [key for (key,) in rows.values_list("pk")]
