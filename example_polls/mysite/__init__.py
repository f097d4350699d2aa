from __future__ import annotations

import os

if os.environ.get("SAFEMIGRATE_EXECUTOR") == "celery":
    # Whoever enqueues needs to know the broker, so the site and all commands load the app too.
    from mysite.celery import app as celery_app  # noqa: F401
