"""Values made unique within a column, in memory that does not grow with the table."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from django.db.models import QuerySet

from safemigrate.populate import Suffix
from safemigrate.types import AnyField

#: How many forms of a value are looked up at once: the first time, and at most.
CANDIDATES, MOST_CANDIDATES = 20, 500
LAST = 10_000_000
#: The values whose last number is remembered; of the others it is found again by looking.
REMEMBERED = 100_000


class Deduplicator:
    """Gives each value of a batch its first form that no row has, as the database holds them equal.

    Asks the database for the taken ones, batch by batch, by the index of the column, and remembers the last number
    of each value: so a thousand equal values cost no more than a thousand different ones.
    """

    def __init__(
        self, rows: QuerySet[Any], field: AnyField, suffix: Suffix, same: Callable[[str], str]
    ) -> None:
        self.rows, self.field, self.suffix, self.same = rows, field, suffix, same
        self.numbers: OrderedDict[str, int] = OrderedDict()

    def unique(self, values: Sequence[str]) -> list[str]:
        """Return the values, in their order, each with the smallest suffix that makes it unique."""
        self._forget()
        last = {value: self.numbers.get(self.same(str(value)), 0) for value in values}
        forms = {value: {self._form(value, n) for n in (max(n, 1), n + 1)} for value, n in last.items()}
        taken = self._taken(list(chain.from_iterable(forms.values())))
        # By value: up to which number its forms are known, and how many more are looked up then.
        known: dict[str, tuple[int, int]] = {}
        for value, number in last.items():
            base = self.same(str(value))
            known[base] = (number + 1, CANDIDATES)
            if number and self.same(self._form(value, number)) not in taken:
                # The row of that number is gone, or was never written.
                self.numbers.pop(base, None)
                known[base] = (0, CANDIDATES)
        return [self._next(value, taken, known) for value in values]

    def _next(self, value: str, taken: set[str], known: dict[str, tuple[int, int]]) -> str:
        base = self.same(str(value))
        for number in range(self.numbers.get(base, 0) + 1, LAST):
            upto, step = known[base]
            if number > upto:
                forms = [self._form(value, n) for n in range(number, number + step)]
                taken |= self._taken([form for form in forms if self.same(form) not in taken])
                known[base] = (number + step - 1, min(2 * step, MOST_CANDIDATES))
            form = self._form(value, number)
            if self.same(form) not in taken:
                taken.add(self.same(form))
                self.numbers[base] = number
                self.numbers.move_to_end(base)
                return form
        raise ValueError(f"no free form of {value!r} was found")

    def _forget(self) -> None:
        while len(self.numbers) > REMEMBERED:
            self.numbers.popitem(last=False)

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
