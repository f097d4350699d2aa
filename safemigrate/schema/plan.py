"""The plan of an operation: its steps and fills in order, and how `sqlmigrate` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safemigrate.backends import for_connection
from safemigrate.engine.batch_runner import ComputedInDatabase
from safemigrate.engine.batches import Target
from safemigrate.populate.sources import InDatabase, Source
from safemigrate.schema.steps import Step


@dataclass(frozen=True)
class Fill:
    """The part of a plan that is no step: rows filled range after range."""

    target: Target
    source: Source

    @property
    def title(self) -> str:
        return f"fill {', '.join(self.target.names)} by {self.source.title}"

    def statement(self) -> tuple[str, tuple[Any, ...]] | None:
        """Return the UPDATE, but for the bounds of the keys, with its parameters; None where Python computes.

        Raises InvalidPopulate for an expression that no UPDATE of this model can have.
        """
        if not isinstance(self.source, InDatabase):
            return None
        batches = self.target.batches
        return ComputedInDatabase(self.source, self.target).statement(batches)


Plan = Sequence[Step | Fill]


def write_down(schema_editor: Any, plan: Plan) -> None:
    """Put the plan into what `sqlmigrate` prints."""
    for part in plan:
        if isinstance(part, Fill):
            _write_fill(schema_editor, part)
        else:
            _comment(schema_editor, f"{part.title} ({part.lock})")
            schema_editor.collected_sql.extend(f"{sql};" for sql in (*part.statements, *part.cleanup))


def _write_fill(schema_editor: Any, fill: Fill) -> None:
    _comment(schema_editor, f"{fill.title}: committed range after range of primary keys,")
    _comment(schema_editor, "each of which locks only the rows that it writes")
    statement = fill.statement()
    if statement is None:
        _comment(schema_editor, f"Python computes the values for {fill.target.label}: no SQL can be shown")
        return
    text = for_connection(schema_editor.connection).with_values(*statement)
    _comment(schema_editor, f"{text} AND <the primary key is in the range>;")


def _comment(schema_editor: Any, text: str) -> None:
    schema_editor.collected_sql.extend(f"-- {line}" for line in text.splitlines())
