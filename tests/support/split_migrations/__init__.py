"""The polls' migrations with the field in three phases, filled by a function that a test may replace.

Used by `MIGRATION_MODULES = {"polls": "tests.support.split_migrations"}`.
"""
