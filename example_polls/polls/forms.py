from __future__ import annotations

from typing import Any
from uuid import uuid4

from django import forms

from polls.models import Choice, Question


class VoteForm(forms.Form):
    choice = forms.ModelChoiceField(
        queryset=Choice.objects.none(),
        error_messages={
            "required": "Choose an answer before you vote.",
            "invalid_choice": "That answer does not belong to this poll. Choose one of these.",
        },
    )

    def __init__(self, question: Question, data: Any = None) -> None:
        super().__init__(data)
        self.fields["choice"].queryset = question.choice_set.order_by("pk")  # type: ignore[attr-defined]


class ReportForm(forms.Form):
    """Its key is new with each page, so that a second press of the button on it asks for the same report."""

    key = forms.UUIDField(initial=uuid4, widget=forms.HiddenInput)
