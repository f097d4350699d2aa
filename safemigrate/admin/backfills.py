"""The Backfill classes of the apps in the admin: seen, tried on some rows, and started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.db import Error
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from safemigrate import backfills
from safemigrate.admin import pages
from safemigrate.backfills import Backfill
from safemigrate.backfills.problems import problems
from safemigrate.exceptions import NotEnqueued, SafemigrateError
from safemigrate.models import SENSITIVE, BackfillRun
from safemigrate.runs import lookup, scheduler, store
from safemigrate.runs.verify import Trial, trial

START = "safemigrate.start_backfillrun"
#: Of a value that was tried, as many letters are shown.
LETTERS = 120
#: The parameters of a form are sent under this prefix, beside the page's own.
GIVEN = "given"


class Place(forms.Form):
    """Which of the backfill's databases."""

    database = forms.ChoiceField(label=gettext_lazy("Database"))

    def __init__(self, kind: type[Backfill], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["database"].choices = [(alias, alias) for alias in kind.databases]  # type: ignore[attr-defined]


@dataclass
class Asked:
    """What a person fills in: the database, and the parameters."""

    kind: type[Backfill]
    place: Place
    given: forms.Form

    @classmethod
    def of(cls, kind: type[Backfill], data: Any = None) -> Asked:
        given = (kind.form or forms.Form)(data, prefix=GIVEN)
        for name in kind.sensitive:
            if name in given.fields and type(given.fields[name].widget) is forms.TextInput:
                given.fields[name].widget = forms.PasswordInput()
        return cls(kind, Place(kind, data), given)

    def is_valid(self) -> bool:
        return self.place.is_valid() & self.given.is_valid()

    @property
    def fields(self) -> list[Any]:
        return [*self.place, *self.given]

    @property
    def alias(self) -> str:
        return str(self.place.cleaned_data["database"])

    @property
    def parameters(self) -> dict[str, Any]:
        """Return what the form was given, as the command would give it."""
        given = {name: self.given[name].data for name in self.given.fields}
        return {name: value for name, value in given.items() if value not in (None, "")}

    @property
    def command(self) -> str:
        label, parameters = self.kind.label(), {**self.parameters, SENSITIVE: list(self.kind.sensitive)}
        shown = BackfillRun(backfill=label, alias=self.alias, parameters=parameters)
        return shown.command


class BackfillPages:
    """Two pages beside those of the runs: all backfills, and one to be started."""

    def __init__(self, model_admin: Any) -> None:
        self.model_admin = model_admin

    def all(self, request: HttpRequest) -> HttpResponse:
        """Show each backfill with its last run."""
        if not self.model_admin.has_view_permission(request):
            raise PermissionDenied
        rows = [
            (
                label,
                kind.summary(),
                ", ".join(kind.databases),
                self._last_run(label),
                self._may(request, kind),
            )
            for label, kind in self._known().items()
        ]
        return self._page(request, "backfills.html", _("Backfills"), rows=rows)

    def one(self, request: HttpRequest, label: str) -> HttpResponse:
        """Ask for the parameters, try it on some rows, and start it. Only a POST does anything."""
        kind = self._known().get(label)
        if kind is None:
            raise Http404
        if not self._may(request, kind):
            return self._refuse(request, kind)
        asked, found, refused = Asked.of(kind, request.POST or None), None, "\n".join(problems(kind))
        if request.method == "POST" and not refused and asked.is_valid():
            try:
                if "start" in request.POST:
                    return self._start(request, asked)
                found = self._try(asked)
            except (SafemigrateError, Error) as error:
                refused = str(error)
        return self._form(request, asked, found, refused)

    def _known(self) -> dict[str, type[Backfill]]:
        return backfills.registered()

    def _may(self, request: HttpRequest, kind: type[Backfill]) -> bool:
        """May this person start it? Who starts a run has to be allowed to see it too."""
        rights = [right for right in (START, kind.permission()) if right]
        return self.model_admin.has_view_permission(request) and request.user.has_perms(rights)

    def _refuse(self, request: HttpRequest, kind: type[Backfill]) -> HttpResponse:
        """Return to the list, with the permissions that are missing."""
        if request.method != "GET" or not self.model_admin.has_view_permission(request):
            raise PermissionDenied
        missing = [
            right for right in (START, kind.permission()) if right and not request.user.has_perm(right)
        ]
        words = {"label": kind.label(), "missing": ", ".join(missing)}
        text = _("You may not start %(label)s: it takes the permission %(missing)s.") % words
        self.model_admin.message_user(request, text, messages.ERROR)
        return HttpResponseRedirect(self._url("safemigrate_backfills"))

    @staticmethod
    def _last_run(label: str) -> tuple[BackfillRun, Any, Any] | None:
        run = store.records().filter(backfill=label).first()
        return None if run is None else (run, pages.badge(run), pages.moment(run.started or run.created))

    @staticmethod
    def _try(asked: Asked) -> Trial:
        job = lookup.find(asked.kind.label(), asked.alias, asked.parameters)
        job.check_column()
        return trial(job)

    def _start(self, request: HttpRequest, asked: Asked) -> HttpResponse:
        label, person = asked.kind.label(), request.user.get_username()[:150]
        if scheduler.executor_of(label) == "inline":
            raise NotEnqueued(_("No queue is configured: type the command."))
        run = scheduler.start_on(label, asked.parameters, asked.alias, person)
        if run is None:
            self.model_admin.message_user(
                request, _("Nothing is to be done: every row is done."), messages.INFO
            )
            return HttpResponseRedirect(self._url("safemigrate_backfills"))
        self.model_admin.message_user(
            request, _("%(run)s was started.") % {"run": pages.name(run)}, messages.SUCCESS
        )
        return HttpResponseRedirect(self._url("safemigrate_backfillrun_change", run.pk))

    def _form(self, request: HttpRequest, asked: Asked, found: Trial | None, refused: str) -> HttpResponse:
        kind = asked.kind
        tried = found is not None and not refused
        return self._page(
            request,
            "backfill.html",
            kind.label(),
            summary=kind.summary(),
            asked=asked,
            refused=refused,
            tried=tried,
            trial=found,
            cells=found.cells(LETTERS) if found else [],
            rows_about=pages.number(found.rows_about) if found else "",
            calls_function=kind.has("batch") or kind.has("row"),
            command=asked.command if tried and scheduler.executor_of(kind.label()) == "inline" else "",
            back=self._url("safemigrate_backfills"),
        )

    def _url(self, name: str, *arguments: Any) -> str:
        return reverse(f"admin:{name}", args=arguments, current_app=self.model_admin.admin_site.name)

    def _page(self, request: HttpRequest, template: str, title: str, **context: Any) -> HttpResponse:
        admin = self.model_admin
        context |= admin.admin_site.each_context(request) | {
            "title": title,
            "opts": admin.opts,
            "media": admin.media,
        }
        request.current_app = admin.admin_site.name
        return TemplateResponse(request, f"admin/safemigrate/backfillrun/{template}", context)
