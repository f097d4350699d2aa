"""Full tables, made by the database itself: 120 bytes a row on PostgreSQL, and dates in no order."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

TABLE = "polls_question"
COLUMNS = {"question_text": "text", "pub_date": "date"}

# How each database spells the values of the n-th row. What is in no order is at random: a regular stride, which would
# be the same every time, makes each batch go through the whole index as no real one does.
SPELLINGS = {
    "postgresql": {
        "text": "rpad('Question ' || n || '?', 76, '.')",
        "json": """rpad('{"id": ' || n || ', "title": "Question ' || n || '", "tags": ["a", "b"]}', 76)""",
        "date": "timestamptz '2024-01-01 12:00+00' + floor(random() * 1000000) * interval '1 minute'",
        "uuid": "md5(n::text)::uuid",
        "number": "n",
        "part": "n % 100",
        "poll": "1 + n % $polls",
        "numbers": "generate_series(1, $rows) AS n",
    },
    "mysql": {
        "text": "rpad(concat('Question ', n, '?'), 76, '.')",
        "json": """rpad(concat('{"id": ', n, ', "title": "Question ', n, '", "tags": ["a", "b"]}'), 76, ' ')""",
        "date": "timestamp '2024-01-01 12:00' + INTERVAL FLOOR(RAND() * 1000000) MINUTE",
        "uuid": "concat(left(md5(n), 12), '4', substr(md5(n), 14, 3), 'a', substr(md5(n), 18))",
        "number": "n",
        "part": "n % 100",
        "poll": "1 + n % $polls",
        # MySQL has no sequence, and MariaDB no recursion as deep as the other.
        "numbers": "(SELECT 1 + $digits AS n FROM $tens) AS numbers WHERE n <= $rows",
    },
    "sqlite": {
        "text": "substr('Question ' || n || '?' || replace(hex(zeroblob(38)), '0', '.'), 1, 76)",
        "json": """printf('%-76s', '{"id": ' || n || ', "title": "Question ' || n || '", "tags": ["a", "b"]}')""",
        "date": "datetime('2024-01-01 12:00', abs(random() % 1000000) || ' minutes')",
        "uuid": "lower(hex(randomblob(16)))",
        "number": "n",
        "part": "n % 100",
        "poll": "1 + n % $polls",
        "numbers": (
            "(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $rows) "
            "SELECT n FROM numbers WHERE n <= $rows)"
        ),
    },
}
INDEXES = ("pub_date", "question_text", "pub_date, question_text", "question_text, pub_date", "pub_date DESC")
AFTERWARDS = {
    "postgresql": ("VACUUM ANALYZE", "CHECKPOINT"),
    "mysql": (f"ANALYZE TABLE {TABLE}",),
    "sqlite": ("ANALYZE",),
}


def seed(
    vendor: str, rows: int, columns: Mapping[str, str] = COLUMNS, *, indexes: int = 1, polls: int = 1
) -> list[str]:
    """Return what fills the questions' table and indexes it; `columns` names the spelling of each column."""
    return [
        insert(vendor, TABLE, rows, columns, polls),
        *(f"CREATE INDEX {TABLE}_{n} ON {TABLE} ({INDEXES[n]})" for n in range(indexes)),
        *AFTERWARDS[vendor],
    ]


def insert(vendor: str, table: str, rows: int, columns: Mapping[str, str], polls: int = 1) -> str:
    """Return the INSERT of so many rows."""
    spelling = SPELLINGS[vendor]
    values = ", ".join(spelling[name] for name in columns.values())
    places = range(len(str(rows)))
    ten = " UNION ALL ".join(f"SELECT {digit} AS n" for digit in range(10))
    digits = " + ".join(f"{10**place} * d{place}.n" for place in places)
    tens = ", ".join(f"({ten}) AS d{place}" for place in places)
    # The keys are to be in the order of the numbers: a join makes these in any.
    made = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {spelling['numbers']} ORDER BY n"
    return Template(made).substitute(rows=rows, polls=polls, digits=digits, tens=tens)
