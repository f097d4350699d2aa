from __future__ import annotations

from datetime import timedelta

from django import forms
from django.db import connections
from django.db.models import OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone
from django.utils.text import slugify

from polls.models import Choice, Question
from safemigrate.backfills import Backfill

votes_of_choices = (
    Choice._base_manager.filter(question=OuterRef("pk"))
    .order_by()
    .values("question")
    .annotate(sum=Sum("votes"))
)


class RecountVotes(Backfill):
    """Questions whose number of votes is not that of their choices."""

    model = Question
    databases = list(connections)
    values = {"vote_count": Coalesce(Subquery(votes_of_choices.values("sum")), 0)}


class SlugifyQuestions(Backfill):
    """Questions that have no name for their address yet get one of their text."""

    model = Question
    databases = list(connections)
    where = Q(url_name="")
    fields = ["url_name"]

    def row(self, instance: Question) -> str:
        return slugify(instance.question_text)[:60] or f"question-{instance.pk}"


class Closed(forms.Form):
    days = forms.IntegerField(min_value=0, help_text="The days since they expired.")


class PurgeClosedPolls(Backfill):
    """Polls that expired a number of days ago are deleted, with their choices."""

    form = Closed
    databases = list(connections)
    delete = True

    def queryset(self) -> QuerySet[Question]:
        expired = timezone.now() - timedelta(days=self.cleaned_data["days"])
        return Question._base_manager.filter(expires_date__lt=expired)
