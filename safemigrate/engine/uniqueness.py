"""Values made unique within a column, in memory that does not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db.models import QuerySet

from safemigrate.populate import Suffix
from safemigrate.types import AnyField

CANDIDATES = 20
LAST = 10_000_000


class Deduplicator:
    """Gives each value of a batch its first form that no row has, as the database holds them equal.

    Asks the database for the taken ones, batch by batch, by the index of the column.
    """

    def __init__(
        self, rows: QuerySet[Any], field: AnyField, suffix: Suffix, same: Callable[[str], str]
    ) -> None:
        self.rows, self.field, self.suffix, self.same = rows, field, suffix, same

    def unique(self, values: Sequence[str]) -> list[str]:
        """Return the values, in their order, each with the smallest suffix that makes it unique."""
        first = [self._form(value, 1) for value in values]
        taken = self._taken(first)
        return [self._next(value, taken) for value in values]

    def _next(self, value: str, taken: set[str]) -> str:
        number = 1
        while number < LAST:
            form = self._form(value, number)
            if self.same(form) not in taken:
                taken.add(self.same(form))
                return form
            number = self._ahead(value, number + 1, taken)
        raise ValueError(f"no free form of {value!r} was found")

    def _ahead(self, value: str, number: int, taken: set[str]) -> int:
        """Look up the next forms; where all are taken, leap, so that a thousand namesakes stay cheap."""
        step = CANDIDATES
        while number < LAST:
            forms = [self._form(value, n) for n in range(number, number + step)]
            taken |= self._taken([form for form in forms if self.same(form) not in taken])
            for offset, form in enumerate(forms):
                if self.same(form) not in taken:
                    return number + offset
            number, step = number + step, min(step * 2, 500)
        return number

    def _taken(self, forms: Sequence[str]) -> set[str]:
        if not forms:
            return set()
        name = self.field.name
        found = self.rows.filter(**{f"{name}__in": set(forms)}).values_list(name, flat=True)
        asked, taken = {self.same(form) for form in forms}, {self.same(value) for value in found}
        if not taken <= asked:
            # The collation holds more texts to be equal than `same` knows of: ask it for each.
            taken |= {self.same(form) for form in forms if self.rows.filter(**{name: form}).exists()}
        return taken

    def _form(self, value: Any, number: int) -> str:
        return self.suffix.candidate(str(value), number, self.field.max_length)
