"""The pages of the admin on which a report is asked for, and given out."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import BadRequest, PermissionDenied
from django.db import transaction
from django.http import FileResponse, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_GET, require_POST

from polls import reports, tasks
from polls.forms import ReportForm
from polls.reports import Report
from safemigrate.exceptions import NotEnqueued
from safemigrate.executors import later

log = logging.getLogger(__name__)

QUEUE = "default"  # Not that of the fills: whoever waits for a report does not wait for these.

READY = "Your report is ready: it is the first one here."
BY_MAIL = "You get a mail at {address} when the report is ready. It will be on this page, too."
NO_ADDRESS = (
    "The report is being made. There is no mail address in your account, so no mail can tell you when it is "
    "ready: load this page again in a while, the report will be here."
)
NOT_TAKEN = (
    "The report was not asked for: what makes reports in the background cannot be reached at the moment. Nothing "
    "is lost and nothing is half done. Try again in some minutes; if it stays so, tell those who run the site."
)
GONE = "This report is not here: it was deleted in the meantime, or it is another person's."


class ReportPages(admin.ModelAdmin):
    class Media:
        css = {"all": ["polls/admin.css"]}

    def get_urls(self) -> list[URLPattern]:
        return [
            path("report/", self._page(require_POST, self.ask_for_report), name="polls_question_report"),
            path("reports/", self._page(require_GET, self.show_reports), name="polls_question_reports"),
            path("reports/<uuid:key>/", self._page(require_GET, self.give_report), name="polls_question_csv"),
            *super().get_urls(),
        ]

    def _page(self, method: Any, view: Any) -> Any:
        """A page for those who may see the polls.

        With no transaction around it, also under ATOMIC_REQUESTS: these views write nothing to the database, so
        there is no commit to wait for before a task is enqueued, and the page can say what came of that.
        """

        def allowed(request: HttpRequest, **arguments: Any) -> HttpResponse:
            if not self.has_view_permission(request):
                raise PermissionDenied
            return view(request, **arguments)

        return transaction.non_atomic_requests(self.admin_site.admin_view(method(allowed)))

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return super().changelist_view(request, (extra_context or {}) | {"report_form": report_form()})

    def ask_for_report(self, request: HttpRequest) -> HttpResponse:
        form = ReportForm(request.POST)
        if not form.is_valid():
            raise BadRequest("The button brings a key along; this request has none.")
        report = Report(str(request.user.pk), str(form.cleaned_data["key"]))
        try:
            self._enqueue(request, report)
        except NotEnqueued as error:
            log.warning("A report for %s was not enqueued: %s", request.user, error)
            messages.error(request, NOT_TAKEN)
        else:
            messages.success(request, what_comes(request, report))
        return redirect("admin:polls_question_reports")

    @staticmethod
    def _enqueue(request: HttpRequest, report: Report) -> None:
        # A worker does not know under which address the site is reached.
        page = request.build_absolute_uri(reverse("admin:polls_question_csv", args=[report.key]))
        later(tasks.report, report.person, report.key, page, queue=QUEUE)

    def show_reports(self, request: HttpRequest) -> HttpResponse:
        context = self.admin_site.each_context(request) | {
            "title": "Your reports",
            "opts": self.opts,
            "media": self.media,
            "report_form": report_form(),
            "reports": reports.of(str(request.user.pk)),
            "days": reports.KEPT.days,
        }
        return TemplateResponse(request, "admin/polls/question/reports.html", context)

    def give_report(self, request: HttpRequest, key: UUID) -> HttpResponse:
        """Only to the person who asked for it."""
        report = Report(str(request.user.pk), str(key))
        if not report.is_ready:
            messages.warning(request, GONE)
            return redirect("admin:polls_question_reports")
        name = f"polls-{report.made:%Y-%m-%d}.csv"
        return FileResponse(report.open(), as_attachment=True, filename=name, content_type=reports.CSV)


def report_form() -> ReportForm:
    return ReportForm(auto_id=False)


def what_comes(request: HttpRequest, report: Report) -> str:
    address = getattr(request.user, request.user.get_email_field_name())
    if report.is_ready:
        return READY
    return BY_MAIL.format(address=address) if address else NO_ADDRESS
