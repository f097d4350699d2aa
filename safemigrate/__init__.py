"""Add a required field to a table that is already full, while the site keeps serving."""

__version__ = "0.1.0"


def is_finished(label: str, *, using: str = "default") -> bool:
    """Does every row on the alias `using` have the value of a field, "polls.Question.expires_date", that is backfilled?

    Looks at the rows, not at a record: it stops at the first that is still to be filled, and reads the whole table
    where there is none, unless the column is NOT NULL. Raises NothingToRun where no migration fills the field.
    """
    from safemigrate.runs import lookup

    return lookup.find(label, using).is_finished()
