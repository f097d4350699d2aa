"""The runs in the admin: seen by who may view them, controlled by who may control them, changed by no one."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django import forms
from django.apps import apps
from django.contrib import admin, messages
from django.contrib.admin.exceptions import NotRegistered
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import router
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html_join
from django.utils.module_loading import import_string
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from safemigrate.admin import pages
from safemigrate.admin.chart import rate_chart
from safemigrate.admin.filters import ModelFilter, PersonFilter, StateFilter
from safemigrate.connections import schema_of
from safemigrate.exceptions import IllegalMove, SafemigrateError
from safemigrate.models import BackfillRun
from safemigrate.runs import store
from safemigrate.runs.status import OVER

Runs = QuerySet[BackfillRun]
if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[BackfillRun]  # which Django itself cannot be asked for
else:
    ModelAdmin = admin.ModelAdmin

#: What a person may ask of a run, in the order of the buttons, and the answer where it cannot be.
ASKED = {
    "pause": (gettext_lazy("Pause"), gettext_lazy("%(run)s cannot be paused: it is %(state)s.")),
    "resume": (gettext_lazy("Resume"), gettext_lazy("%(run)s cannot be resumed: it is %(state)s.")),
    "retry": (gettext_lazy("Retry"), gettext_lazy("%(run)s cannot be tried again: it is %(state)s.")),
    "cancel": (gettext_lazy("Cancel run…"), gettext_lazy("%(run)s cannot be cancelled: it is %(state)s.")),
}
UNREAD_IN_LIST = ("cursor", "bad_rows", "error", "traceback", "output", "populate")


BACKFILL_PAGES, CHANGE = "safemigrate.admin.backfills.BackfillPages", "safemigrate.runs.scheduler.change"
BAD_ROWS, SET = "safemigrate_backfillrun_bad_rows", "safemigrate_backfillrun_set"


class PaceForm(forms.Form):
    """How a run is worked on: a field that is left empty is as it would be by itself."""

    batch_size = forms.IntegerField(label=gettext_lazy("Rows in a batch"), min_value=1, required=False)
    rows_per_second = forms.IntegerField(
        label=gettext_lazy("Most rows in a second"), min_value=1, required=False
    )
    workers = forms.IntegerField(label=gettext_lazy("Workers"), min_value=1)

    def __init__(self, run: BackfillRun, data: Any = None) -> None:
        super().__init__(
            data, auto_id="pace_%s", initial={name: run.set_to(name) for name in self.base_fields}
        )
        if not run.is_shared:
            del self.fields["workers"]


def as_text(cell: Any) -> str:
    """Return a cell that a spreadsheet does not take for a formula."""
    text = str(cell)
    return f"'{text}" if text[:1] in "=+-@\t\r" and not isinstance(cell, int) else text


class RunList(ChangeList):
    def get_queryset(self, *args: Any, **kwargs: Any) -> Runs:
        return super().get_queryset(*args, **kwargs).defer(*UNREAD_IN_LIST)


@admin.register(BackfillRun)
class BackfillRunAdmin(ModelAdmin):
    list_display = (
        *("label", "state", "progress", "place", "rate", "time_left", "started", "duration", "started_by"),
    )
    list_filter = (StateFilter, "alias", ModelFilter, PersonFilter, "executor")
    list_per_page = 50
    search_fields = ("app_label", "model_name", "field_names", "backfill", "migration", "error")
    search_help_text = gettext_lazy("app.Model.field, migration or error")
    actions = ("pause", "resume", "retry", "cancel")
    fieldsets = [(None, {"fields": []})]  # the page of a run has a form of its own

    class Media:
        css = {"all": ["safemigrate/runs.css"]}
        js = ["safemigrate/live.js"]

    # Who may do what

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: BackfillRun | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: BackfillRun | None = None) -> bool:
        return super().has_delete_permission(request, obj) and (obj is None or obj.is_over)

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "pause")

    def has_resume_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "resume")

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "retry")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "cancel")

    def _may(self, request: HttpRequest, asked: str) -> bool:
        """Who controls a run has to be allowed to see it too."""
        right = f"safemigrate.{asked}_backfillrun"
        return self.has_view_permission(request) and bool(request.user.has_perm(right))

    # Where the runs are kept

    def get_queryset(self, request: HttpRequest) -> Runs:
        return super().get_queryset(request).using(store.database())

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        # Django's own would look for the events in the database that the router names.
        kept = [_("%(run)s is not over yet") % {"run": pages.name(run)} for run in objs if not run.is_over]
        return [pages.name(run) for run in objs], {self.opts.verbose_name_plural: len(objs)}, set(), kept

    def delete_model(self, request: HttpRequest, obj: BackfillRun) -> None:
        obj.delete(using=store.database())

    def delete_queryset(self, request: HttpRequest, queryset: Runs) -> None:
        queryset.filter(status__in=OVER).delete()

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return self._unreadable(request) or super().changelist_view(request, extra_context)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._unreadable(request) or super().changeform_view(request, *args, **kwargs)

    def _unreadable(self, request: HttpRequest) -> HttpResponse | None:
        """Return to the index, with the reason, where the runs cannot be read."""
        if not self.has_view_permission(request) or not (reason := store.unreadable()):
            return None
        self.message_user(request, reason, messages.ERROR)
        return HttpResponseRedirect(reverse("admin:index", current_app=self.admin_site.name))

    # The list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RunList

    def get_search_results(self, request: HttpRequest, queryset: Runs, search_term: str) -> tuple[Runs, bool]:
        return super().get_search_results(request, queryset, search_term.replace(".", " "))

    @admin.action(permissions=["pause"], description=gettext_lazy("Pause selected runs"))
    def pause(self, request: HttpRequest, queryset: Runs) -> None:
        self._control(request, "pause", queryset)

    @admin.action(permissions=["resume"], description=gettext_lazy("Resume selected runs"))
    def resume(self, request: HttpRequest, queryset: Runs) -> None:
        self._control(request, "resume", queryset)

    @admin.action(permissions=["retry"], description=gettext_lazy("Retry selected runs"))
    def retry(self, request: HttpRequest, queryset: Runs) -> None:
        self._control(request, "retry", queryset)

    @admin.action(permissions=["cancel"], description=gettext_lazy("Cancel selected runs"))
    def cancel(self, request: HttpRequest, queryset: Runs) -> HttpResponse | None:
        if "confirm" not in request.POST:
            hidden = [("action", "cancel"), *((ACTION_CHECKBOX_NAME, run.pk) for run in queryset)]
            return self._question(request, queryset, request.get_full_path(), hidden)
        self._control(request, "cancel", queryset)
        return None

    @admin.display(description=gettext_lazy("field"), ordering="field_names")
    def label(self, run: BackfillRun) -> str:
        return format_html_join(mark_safe(".<wbr>"), "{}", ((part,) for part in run.label.split(".")))

    @admin.display(description=gettext_lazy("progress"))
    def progress(self, run: BackfillRun) -> str:
        return pages.live(run, "progress", pages.progress(run))

    @admin.display(description=gettext_lazy("status"), ordering="status")
    def state(self, run: BackfillRun) -> str:
        return pages.live(run, "state", pages.moving_badge(run) + pages.hint(run))

    @admin.display(description=gettext_lazy("database"), ordering="alias")
    def place(self, run: BackfillRun) -> str:
        return run.place

    @admin.display(description=gettext_lazy("rows/s"))
    def rate(self, run: BackfillRun) -> str:
        return pages.live(run, "rate", pages.rate(run))

    @admin.display(description=gettext_lazy("time left"))
    def time_left(self, run: BackfillRun) -> str:
        return pages.live(run, "left", pages.time_left(run))

    @admin.display(description=gettext_lazy("duration"))
    def duration(self, run: BackfillRun) -> str:
        return pages.span(run.duration)

    # One run

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.control_view)
        own = [
            path(f"<int:key>/{asked}/", view, {"asked": asked}, f"safemigrate_backfillrun_{asked}")
            for asked in ASKED
        ]
        own.append(
            path("<int:key>/bad-rows.csv", self.admin_site.admin_view(self.bad_rows_view), name=BAD_ROWS)
        )
        own.append(path("<int:key>/set/", self.admin_site.admin_view(self.set_view), name=SET))
        own += [
            path("backfills/", self.admin_site.admin_view(self.backfills_view), name="safemigrate_backfills"),
            path(
                "backfills/<str:label>/",
                self.admin_site.admin_view(self.backfill_view),
                name="safemigrate_backfill",
            ),
        ]
        return [*own, *super().get_urls()]

    # The engine is imported by the pages that need it: each process of a site imports this module.

    def backfills_view(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = import_string(BACKFILL_PAGES)(self).all(request)
        return response

    def backfill_view(self, request: HttpRequest, label: str) -> HttpResponse:
        response: HttpResponse = import_string(BACKFILL_PAGES)(self).one(request, label)
        return response

    def set_view(self, request: HttpRequest, key: int) -> HttpResponse:
        """Change the pace of a run. Only a POST changes anything."""
        if not self._may(request, "set"):
            raise PermissionDenied
        run = get_object_or_404(self.get_queryset(request), pk=key)
        form = PaceForm(run, request.POST or None)
        if request.method == "POST" and form.is_valid():
            try:
                change, who = import_string(CHANGE), request.user.get_username()[:150]
                change(run.pk, who, **form.cleaned_data)
            except SafemigrateError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                self._report(request, run, _("%(run)s: the pace is changed"), messages.SUCCESS)
        elif request.method == "POST":
            texts = [
                f"{form[name].label}: {' '.join(map(str, found))}" for name, found in form.errors.items()
            ]
            self.message_user(request, " ".join(texts), messages.ERROR)
        back = reverse("admin:safemigrate_backfillrun_change", args=(key,), current_app=self.admin_site.name)
        return HttpResponseRedirect(back)

    def bad_rows_view(self, request: HttpRequest, key: int) -> HttpResponse:
        """Return the bad rows of a run as CSV: key and reason."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        run = get_object_or_404(self.get_queryset(request), pk=key)
        response = HttpResponse(content_type="text/csv; charset=utf-8")
        response["Content-Disposition"] = f'attachment; filename="bad-rows-{run.pk}.csv"'
        lines = csv.writer(response)
        lines.writerow(["key", "reason"])
        lines.writerows([as_text(cell) for cell in row] for row in run.bad_rows)
        return response

    def control_view(self, request: HttpRequest, key: int, asked: str) -> HttpResponse:
        """Do what a button says. Only a POST changes anything."""
        if not self._may(request, asked):
            raise PermissionDenied
        run = get_object_or_404(self.get_queryset(request), pk=key)
        back = reverse("admin:safemigrate_backfillrun_change", args=(key,), current_app=self.admin_site.name)
        if asked == "cancel" and "confirm" not in request.POST:
            return self._question(request, [run], back)
        if request.method == "POST":
            self._control(request, asked, [run])
        return HttpResponseRedirect(back)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        run = kwargs["obj"]
        context |= {
            "subtitle": pages.name(run),
            "run": run,
            "badge": pages.badge(run),
            "progress": pages.progress(run),
            "facts": pages.facts(run),
            "is_moving": pages.is_moving(run),
            "advice": pages.advice(run),
            "command": run.next_command,
            "buttons": self._buttons(request, run),
            "pace": None if run.is_over or not self._may(request, "set") else PaceForm(run),
            "chart": rate_chart(run.samples),
            "ranges": pages.ranges(run),
            "bad_rows": self._bad_rows(request, run),
            "events": [
                (pages.moment(event.at), pages.event(event), event.who)
                for event in run.events.using(store.database())
            ],
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def _buttons(self, request: HttpRequest, run: BackfillRun) -> list[tuple[str, Any]]:
        """Return what may be asked of the run now, by this person."""
        return [
            (asked, words)
            for asked, (words, _refusal) in ASKED.items()
            if store.ACTIONS[asked].target(run) and self._may(request, asked)
        ]

    def _bad_rows(self, request: HttpRequest, run: BackfillRun) -> list[tuple[Any, str, str]]:
        """Return key, reason, and the address of the row's own page, where this person may see it."""
        page = self._page_of_rows(request, run)
        return [
            (key, reason, reverse(page, args=(quote(key),), current_app=self.admin_site.name) if page else "")
            for key, reason in run.bad_rows
        ]

    def _page_of_rows(self, request: HttpRequest, run: BackfillRun) -> str:
        try:
            model = apps.get_model(run.app_label, run.model_name)
            rows = self.admin_site.get_model_admin(model)
        except (LookupError, NotRegistered):
            return ""
        # The admin shows the rows of one database, in one schema; in another, the same key is another row.
        here = router.db_for_read(model) == run.alias and schema_of(run.alias) == run.schema
        shown = here and rows.has_view_or_change_permission(request)
        return f"admin:{model._meta.app_label}_{model._meta.model_name}_change" if shown else ""

    # Action

    def _control(self, request: HttpRequest, asked: str, chosen: Iterable[BackfillRun]) -> None:
        """Ask it of each run, and report what came of it."""
        who = request.user.get_username()[:150]
        for run in chosen:
            try:
                self._report(
                    request, getattr(store, asked)(run.pk, who), _("%(run)s: %(state)s"), messages.SUCCESS
                )
            except IllegalMove:
                self._report(request, store.find(run.pk), str(ASKED[asked][1]), messages.ERROR)

    def _report(self, request: HttpRequest, run: BackfillRun, text: str, level: int) -> None:
        words = {"run": pages.name(run), "state": pages.state_in_words(run)}
        self.message_user(request, text % words, level)

    def _question(
        self,
        request: HttpRequest,
        chosen: Iterable[BackfillRun],
        back: str,
        hidden: Sequence[tuple[str, Any]] = (),
    ) -> HttpResponse:
        """Return the page that asks once more, whose form says the same with "confirm"."""
        context = self.admin_site.each_context(request) | {
            "title": _("Cancel for good?"),
            "opts": self.opts,
            "media": self.media,
            "chosen": [(run, pages.name(run)) for run in chosen],
            "hidden": [*hidden, ("confirm", "yes")],
            "back": back,
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/safemigrate/backfillrun/cancel.html", context)
