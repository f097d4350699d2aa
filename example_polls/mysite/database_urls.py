"""Turn a database URL into an entry of ``DATABASES``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgresql": "django.db.backends.postgresql",
    "postgres": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
    "mariadb": "django.db.backends.mysql",
}


def parse(url: str) -> dict[str, Any]:
    """Return the ``DATABASES`` entry that a URL stands for.

    ``sqlite:///polls.sqlite3`` is relative to the current folder, ``sqlite:////srv/polls.sqlite3``
    absolute. Percent-encoded parts are decoded; what stands after ``?`` becomes ``OPTIONS``.
    """
    parts = urlsplit(url)
    if parts.scheme not in ENGINES:
        known = ", ".join(f"{scheme}://" for scheme in ENGINES)
        raise ImproperlyConfigured(
            f"A database URL cannot start with {parts.scheme or 'nothing'!r}: use one of {known}"
            " as in postgresql://user:password@localhost:5432/polls."
        )
    if ENGINES[parts.scheme].endswith("mysql"):
        _use_pymysql_without_mysqlclient()
    database = {
        "ENGINE": ENGINES[parts.scheme],
        "NAME": unquote(parts.path).removeprefix("/"),
        "OPTIONS": dict(parse_qsl(parts.query)),
    }
    return database if parts.scheme == "sqlite" else database | _server(parts)


def _server(parts: SplitResult) -> dict[str, Any]:
    return {
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }


def _use_pymysql_without_mysqlclient() -> None:
    if find_spec("MySQLdb") is None:
        import_module("pymysql").install_as_MySQLdb()
