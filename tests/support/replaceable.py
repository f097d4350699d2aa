"""The function of `split_migrations`, for a test to replace: Django loads those modules again and again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any


def month_later(question: Any) -> Any:
    return question.pub_date + timedelta(days=30)


value: Callable[[Any], Any] = month_later
