"""The polls whose field stays nullable: every third row has no value for it.

Used by `MIGRATION_MODULES = {"polls": "tests.support.one_pass_migrations"}`.
"""
