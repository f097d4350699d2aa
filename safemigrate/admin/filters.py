"""What the list of runs can be narrowed to in the admin."""

from __future__ import annotations

from typing import Any

from django.contrib.admin import SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from safemigrate.admin.pages import LABELS, STALLED
from safemigrate.models import BackfillRun
from safemigrate.runs.status import HELD

Runs = QuerySet[BackfillRun]


class StateFilter(SimpleListFilter):
    """By status; a run that hangs is found under both, what it is and what it should be."""

    title = _("status")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(LABELS.items())

    def queryset(self, request: HttpRequest, queryset: Runs) -> Runs:
        if self.value() == STALLED:
            return queryset.filter(pk__in=stalled(queryset))
        return queryset.filter(status=self.value()) if self.value() else queryset


def stalled(queryset: Runs) -> list[int]:
    """Return the numbers of those that hang, which the database alone cannot know."""
    at_work = queryset.filter(status__in=HELD).only("status", "lease_until", "process", "machine")
    return [run.pk for run in at_work if run.is_stalled()]


class PersonFilter(SimpleListFilter):
    title = _("started by")
    parameter_name = "by"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        found = model_admin.get_queryset(request).exclude(started_by="").order_by("started_by")
        return [(name, name) for name in found.values_list("started_by", flat=True).distinct()]

    def queryset(self, request: HttpRequest, queryset: Runs) -> Runs:
        return queryset.filter(started_by=self.value()) if self.value() else queryset


class ModelFilter(SimpleListFilter):
    title = _("model")
    parameter_name = "model"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        found = model_admin.get_queryset(request).order_by("app_label", "model_name")
        labels = [".".join(pair) for pair in found.values_list("app_label", "model_name").distinct()]
        return [(label, label) for label in labels]

    def queryset(self, request: HttpRequest, queryset: Runs) -> Runs:
        app_label, _dot, model_name = (self.value() or "").partition(".")
        return queryset.filter(app_label=app_label, model_name=model_name) if model_name else queryset
