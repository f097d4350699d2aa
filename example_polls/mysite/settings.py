"""Settings of the example: SQLite as it stands, other databases by environment variables.

DATABASE_URL, ARCHIVE_DATABASE_URL   the aliases "default" and "archive"
POSTGRESQL_URL                       adds a third alias, "postgresql"
DJANGO_DEBUG, DJANGO_SECRET_KEY, DJANGO_ALLOWED_HOSTS
DJANGO_STATIC_ROOT                   where collectstatic puts what a web server is to hand out

What takes long is done at once, in the process that asks for it, or by the workers of a queue:

SAFEMIGRATE_EXECUTOR                 inline (as it stands), celery, rq or tasks; what it needs is installed
                                     by an extra of the same name, and the others need not be there
CELERY_BROKER_URL                    for celery: amqp://user:password@host:5672// or redis://host:6379/0
REDIS_URL                            for rq: redis://host:6379/0
                                     tasks keeps its queue in the database "default"

A report of the polls is made that way, kept for some days, and told of by mail:

REPORTS_FOLDER                       a folder that all machines of the site and its workers share
EMAIL_HOST, DEFAULT_FROM_EMAIL       the mail server; with none, mails are printed
"""

from __future__ import annotations

import os
from pathlib import Path

import django
from django.conf.global_settings import STORAGES as DJANGO_STORAGES

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

# Two queues: a fill of hours must not stand in the way of what takes seconds.
QUEUES = ["default", "safemigrate"]
SAFEMIGRATE_EXECUTOR = os.environ.get("SAFEMIGRATE_EXECUTOR", "inline")

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = (
    # Redis gives the message of a killed worker to another one after this time: longer than any task takes.
    {"visibility_timeout": 300, "unacked_restore_interval": 5, "unacked_restore_throttle": 1}
    if CELERY_BROKER_URL.startswith("redis")
    else {"confirm_publish": True}  # RabbitMQ says that it has the message before it counts as sent.
)
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = QUEUES[0]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1  # A waiting message is for whoever is free, not for who was first.
CELERY_BEAT_SCHEDULE = {
    "requeue": {
        "task": "safemigrate.tasks.requeue",
        "schedule": 60.0,
        # Where no worker is there to do it, the next one is as good.
        "options": {"queue": "safemigrate", "expires": 60},
    }
}

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
RQ_QUEUES = {name: {"URL": REDIS_URL, "SERIALIZER": "rq.serializers.JSONSerializer"} for name in QUEUES}

if SAFEMIGRATE_EXECUTOR == "rq":
    INSTALLED_APPS += ["django_rq"]  # Its pages are in the admin then.
if SAFEMIGRATE_EXECUTOR == "tasks":
    INSTALLED_APPS += ["django_tasks_db"]
    TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": QUEUES}}

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
STATIC_ROOT = os.environ.get("DJANGO_STATIC_ROOT")
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

# Not in MEDIA_ROOT, from which a web server hands out to anybody. With no folder that all machines share, name a
# storage that they do share, with no public addresses.
STORAGES = DJANGO_STORAGES | {
    "reports": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": os.environ.get("REPORTS_FOLDER", BASE_DIR / "reports")},
    }
}

DEFAULT_FROM_EMAIL = os.environ.get("DEFAULT_FROM_EMAIL", "polls@localhost")
MAIL_HOST = os.environ.get("EMAIL_HOST", "")
MAIL_BACKEND = f"django.core.mail.backends.{'smtp' if MAIL_HOST else 'console'}.EmailBackend"
if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": MAIL_BACKEND, "OPTIONS": {"host": MAIL_HOST} if MAIL_HOST else {}}}
else:
    EMAIL_BACKEND, EMAIL_HOST = MAIL_BACKEND, MAIL_HOST
