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

    def checks(self) -> list[tuple[str, str]]:
        """Return the name of each CHECK, or of its column, and its condition, in parentheses."""
        parts = [*self.columns.items(), *(("CHECK", part) for part in self.constraints)]
        return [found for name, part in parts for found in _checks(name, part)]

    def create(self, table: str) -> str:
        """Return the statement that makes a table of this quoted name."""
        return f"CREATE TABLE {table} ({','.join([*self.columns.values(), *self.constraints])}){self.options}"


def split(sql: str) -> list[str]:
    """Return the words of a text, which together are the text: names, strings, blanks and signs among them."""
    return _WORDS.findall(sql)


def _checks(name: str, part: str) -> Iterator[tuple[str, str]]:
    words = [word for word in split(part) if not word.isspace()]
    for place, word in enumerate(words):
        if word.lower() == "constraint":
            name = words[place + 1].strip("\"`[]'")
        if word.lower() != "check" or words[place + 1] != "(":
            continue
        depth, condition = 0, []
        for each in words[place + 1 :]:
            depth += (each == "(") - (each == ")")
            condition.append(each)
            if depth == 0:
                break
        yield name, " ".join(condition)


def _parts(sql: str) -> Iterator[str]:
    """Yield what the commas of the outer parentheses divide, and at last what follows these."""
    depth, part = 0, ""
    words = dropwhile(lambda word: word != "(", split(sql))
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
    words = split(part)
    word: str = next((each for each in words if not each.isspace() and each[:2] not in ("--", "/*")), "")
    if word.lower() in _CONSTRAINTS:
        return None
    if (quote := word[:1]) in ('"', "`", "[", "'"):
        end = _CLOSING.get(quote, quote)
        word = word[1:-1].replace(2 * end, end)
    return word.lower()
