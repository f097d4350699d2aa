from __future__ import annotations

from django.contrib import admin

from polls.models import Choice, Question
from polls.report_pages import ReportPages


class ChoiceInline(admin.TabularInline):
    model = Choice
    extra = 3


@admin.register(Question)
class QuestionAdmin(ReportPages, admin.ModelAdmin):
    fieldsets = (
        (None, {"fields": ("question_text",)}),
        (
            "Date information",
            {
                "fields": (
                    "pub_date",
                    "expires_date",
                )
            },
        ),
    )
    inlines = (ChoiceInline,)
    list_display = (
        "question_text",
        "pub_date",
        "expires_date",
        "was_published_recently",
    )
    list_filter = (
        "pub_date",
        "expires_date",
    )
    search_fields = ("question_text",)
    date_hierarchy = "pub_date"
