"""The tests' project: the example's apps on every database that `tests.plugin` has booted.

An alias whose server is not there is not in DATABASES.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mysite import database_urls
from mysite.settings import MIDDLEWARE, TEMPLATES  # noqa: F401

FOLDER = Path(os.environ.get("SAFEMIGRATE_TEST_FOLDER", tempfile.gettempdir()))

# Set for a process that a test starts, to let it use the test's own databases.
NAMES: dict[str, str] = json.loads(os.environ.get("SAFEMIGRATE_TEST_NAMES", "{}"))


def sqlite(alias: str) -> dict[str, Any]:
    """A database in a file, so that several connections and processes may use it."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": NAMES.get(alias, str(FOLDER / f"{alias}.sqlite3")),
        "TEST": {"NAME": str(FOLDER / f"test_{alias}.sqlite3")},
        # What a killed process has written is kept; the machine is not to lose its power.
        "OPTIONS": {"init_command": "PRAGMA synchronous = OFF"},
    }


def servers() -> dict[str, dict[str, Any]]:
    urls = {
        "postgresql": os.environ.get("SAFEMIGRATE_TEST_POSTGRESQL"),
        "postgresql_archive": os.environ.get("SAFEMIGRATE_TEST_POSTGRESQL"),
        "postgresql_old": os.environ.get("SAFEMIGRATE_TEST_POSTGRESQL_OLD"),
        "mariadb": os.environ.get("SAFEMIGRATE_TEST_MARIADB"),
    }
    return {
        alias: database_urls.parse(url)
        | {"NAME": NAMES.get(alias, f"safemigrate_{alias}"), "TEST": {"MIGRATE": False}}
        for alias, url in urls.items()
        if url
    }


DATABASES = {"default": sqlite("default"), "archive": sqlite("archive"), **servers()}

INSTALLED_APPS = [
    "polls",
    "safemigrate",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

ROOT_URLCONF = "mysite.urls"
STATIC_URL = "static/"
SECRET_KEY = "only-for-tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
TIME_ZONE = "UTC"
USE_TZ = True
MAILERS = {
    "default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}
}  # Asked for from Django 6.1 on.

if "SAFEMIGRATE_TEST_MIGRATIONS" in os.environ:
    MIGRATION_MODULES = {"polls": os.environ["SAFEMIGRATE_TEST_MIGRATIONS"]}
