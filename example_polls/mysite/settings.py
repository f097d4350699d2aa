"""Settings of the example: SQLite as it stands, other databases by environment variables.

DATABASE_URL, ARCHIVE_DATABASE_URL   the aliases "default" and "archive"
POSTGRESQL_URL                       adds a third alias, "postgresql"
DJANGO_DEBUG, DJANGO_SECRET_KEY, DJANGO_ALLOWED_HOSTS
"""

from __future__ import annotations

import os
from pathlib import Path

from mysite import database_urls

BASE_DIR = Path(__file__).resolve().parent.parent

# Right for a demo on your own machine; a site that others reach sets both.
DEBUG = os.environ.get("DJANGO_DEBUG", "true").lower() in {"1", "true", "yes", "on"}
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only-for-the-example-project")
ALLOWED_HOSTS = os.environ.get("DJANGO_ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")

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

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "mysite.urls"
WSGI_APPLICATION = "mysite.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {
    "default": database_urls.parse(os.environ.get("DATABASE_URL", f"sqlite:///{BASE_DIR}/default.sqlite3")),
    "archive": database_urls.parse(
        os.environ.get("ARCHIVE_DATABASE_URL", f"sqlite:///{BASE_DIR}/archive.sqlite3")
    ),
}
if "POSTGRESQL_URL" in os.environ:
    DATABASES["postgresql"] = database_urls.parse(os.environ["POSTGRESQL_URL"])

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
