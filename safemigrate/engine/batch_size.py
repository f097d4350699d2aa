"""The size of the next batch, from the time the last one took. The time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from safemigrate import conf

#: The rows of a first batch, and of the smallest and the largest that the pace chooses.
START, SMALLEST, LARGEST = 1_000, 200, 20_000
#: Where a function is called with the rows, which may take any time with each: a service is asked, a file read.
CALLED_START, CALLED_SMALLEST = 20, 1


@dataclass(frozen=True)
class Pace:
    """How large batches may be (rows) and how long they should take (seconds).

    A batch that took less than half of `seconds` makes the next one larger, at most fourfold, so that
    1,000 rows become 16,000 in two batches. One that took longer than `seconds` shrinks it in
    proportion; one that took five times as long divides it by ten at once, because rows wait behind it.
    """

    seconds: float = 0.1
    start: int = START
    smallest: int = SMALLEST
    largest: int = LARGEST

    @classmethod
    def fixed(cls, size: int) -> Pace:
        """Return a pace that always gives `size` rows."""
        return cls(start=size, smallest=size, largest=size)

    def next_size(self, size: int, took: float) -> int:
        """Return the rows of the next batch after one of `size` rows `took` seconds of its own work.

        `took` must not contain waiting (for a lock, for a pause): a size that shrinks because of waiting
        makes more batches, which wait more.
        """
        return min(max(int(size * self._factor(took)), self.smallest), self.largest)

    def _factor(self, took: float) -> float:
        if took > 5 * self.seconds:
            return 0.1
        aim = 0.75 * self.seconds
        if self.seconds / 2 <= took <= self.seconds:
            return 1.0
        return min(aim / max(took, 1e-6), 4.0)


def configured(batch_size: int | None = None, *, calls: bool = False) -> Pace:
    """Return the pace that the settings ask for; `batch_size`, in rows, overrides them.

    `calls` says that a function is called with the rows.
    """
    fixed = batch_size or conf.get("SAFEMIGRATE_BATCH_SIZE")
    if fixed:
        return Pace.fixed(fixed)
    start, smallest = (CALLED_START, CALLED_SMALLEST) if calls else (START, SMALLEST)
    return Pace(conf.get("SAFEMIGRATE_BATCH_SECONDS"), min(max(start, smallest), LARGEST), smallest, LARGEST)
