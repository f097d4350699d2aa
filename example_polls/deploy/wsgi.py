"""The site as gunicorn serves it: static files too, so that it needs no other web server."""

from __future__ import annotations

from django.conf import settings
from mysite.wsgi import application as site
from whitenoise import WhiteNoise

application = WhiteNoise(site, root=settings.STATIC_ROOT, prefix=settings.STATIC_URL)
