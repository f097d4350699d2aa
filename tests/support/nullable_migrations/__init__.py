"""The polls whose field was there as null=True, and is made required.

Used by `MIGRATION_MODULES = {"polls": "tests.support.nullable_migrations"}`.
"""
