from __future__ import annotations

from datetime import timedelta

from django.contrib import admin
from django.db import models
from django.utils import timezone


class QuestionQuerySet(models.QuerySet["Question"]):
    def published(self) -> QuestionQuerySet:
        """Leave out what is to be published later; the newest comes first."""
        return self.filter(pub_date__lte=timezone.now()).order_by("-pub_date")


class Question(models.Model):
    question_text = models.CharField(max_length=200)
    pub_date = models.DateTimeField("date published")
    expires_date = models.DateTimeField("expires at")
    # What is kept beside the choices and the text; backfills.py puts it right.
    vote_count = models.PositiveIntegerField(db_default=0, editable=False)
    url_name = models.SlugField(max_length=60, db_default="", db_index=False, editable=False)

    objects = QuestionQuerySet.as_manager()

    def __str__(self) -> str:
        return self.question_text

    @admin.display(boolean=True, ordering="pub_date", description="Published recently?")
    def was_published_recently(self) -> bool:
        now = timezone.now()
        return now - timedelta(days=1) <= self.pub_date <= now

    def is_expired(self) -> bool:
        return self.expires_date <= timezone.now()


class Choice(models.Model):
    question = models.ForeignKey(Question, on_delete=models.CASCADE)
    choice_text = models.CharField(max_length=200)
    votes = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.choice_text
