"""How old rows get their value: the kinds of populate, recognized by what they are."""

from safemigrate.populate.kinds import FromApps, FromRelated, PerBatch, PerRow, Suffix

__all__ = ["FromApps", "FromRelated", "PerBatch", "PerRow", "Suffix"]
