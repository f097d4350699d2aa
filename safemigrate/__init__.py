"""Add a required field to a table that is already full, while the site keeps serving."""

__version__ = "0.1.0"
