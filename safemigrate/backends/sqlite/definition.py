"""A table as the file keeps it: the text of its CREATE TABLE, taken apart and put together again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import dropwhile

# A text or a quoted name, a comment, a word, blanks, or one character of anything else.
_WORDS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/|\w+|\s+|.""", re.DOTALL
)
_CONSTRAINTS = {"constraint", "primary", "unique", "check", "foreign"}
_CLOSING = {"[": "]"}


@dataclass(frozen=True)
class Definition:
    """What stands between the parentheses of a CREATE TABLE, and after them.

    `columns` has the text of each column by its name in small letters, which is how SQLite compares names.
    """

    columns: dict[str, str]
    constraints: tuple[str, ...]
    options: str

    @classmethod
    def parse(cls, sql: str) -> Definition:
        *parts, options = _parts(sql)
        named = [(_name(part), part) for part in parts]
        columns = {name: part for name, part in named if name is not None}
        return cls(columns, tuple(part for name, part in named if name is None), options)

    def with_column(self, name: str, text: str | None) -> Definition:
        """Return it with this text for a column, which may be a new one; without the column where it is None."""
        columns = {**self.columns, name.lower(): text or ""}
        return replace(self, columns={key: part for key, part in columns.items() if part})

    def create(self, table: str) -> str:
        """Return the statement that makes a table of this quoted name."""
        return f"CREATE TABLE {table} ({','.join([*self.columns.values(), *self.constraints])}){self.options}"


def _parts(sql: str) -> Iterator[str]:
    """Yield what the commas of the outer parentheses divide, and at last what follows these."""
    depth, part = 0, ""
    words = dropwhile(lambda word: word != "(", _WORDS.findall(sql))
    for word in words:
        depth += (word == "(") - (word == ")")
        if depth == 0:
            break
        if depth == 1 and word in "(,":
            if word == ",":
                yield part
            part = ""
        else:
            part += word
    yield part
    yield "".join(words)


def _name(part: str) -> str | None:
    """Return the name of the column that a part defines, None of a table's constraint."""
    words = _WORDS.findall(part)
    word: str = next((each for each in words if not each.isspace() and each[:2] not in ("--", "/*")), "")
    if word.lower() in _CONSTRAINTS:
        return None
    if (quote := word[:1]) in ('"', "`", "[", "'"):
        end = _CLOSING.get(quote, quote)
        word = word[1:-1].replace(2 * end, end)
    return word.lower()
