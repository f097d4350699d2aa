from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.db.models import F, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views import generic
from django.views.decorators.http import require_POST

from polls.forms import VoteForm
from polls.models import Question


class IndexView(generic.ListView):
    template_name = "polls/index.html"
    context_object_name = "latest_question_list"

    def get_queryset(self) -> QuerySet[Question]:
        questions = Question.objects.published()
        questions = questions.filter(expires_date__gt=timezone.now())
        return questions[:10]

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        expired = Question.objects.published().filter(expires_date__lte=timezone.now())
        context["expired_question_list"] = expired[:5]
        return context


class DetailView(generic.DetailView):
    template_name = "polls/detail.html"

    def get_queryset(self) -> QuerySet[Question]:
        return Question.objects.published()

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(form=VoteForm(self.object), **kwargs)

    def render_to_response(self, context: dict[str, Any], **kwargs: Any) -> HttpResponse:
        if self.object.is_expired():
            return redirect("polls:results", self.object.pk)
        return super().render_to_response(context, **kwargs)


class ResultsView(generic.DetailView):
    template_name = "polls/results.html"

    def get_queryset(self) -> QuerySet[Question]:
        return Question.objects.published()

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        choices = list(self.object.choice_set.order_by("-votes", "pk"))
        total = sum(choice.votes for choice in choices)
        return super().get_context_data(choices=choices, total_votes=total, **kwargs)


@require_POST
def vote(request: HttpRequest, pk: int) -> HttpResponse:
    question = get_object_or_404(Question.objects.published(), pk=pk)
    if question.is_expired():
        messages.warning(request, "This poll is closed: your vote was not counted.")
        return redirect("polls:results", question.pk)
    form = VoteForm(question, request.POST)
    if not form.is_valid():
        return render(request, "polls/detail.html", {"question": question, "form": form}, status=422)
    # The database adds one, so that two votes at the same moment both count.
    question.choice_set.filter(pk=form.cleaned_data["choice"].pk).update(votes=F("votes") + 1)
    messages.success(request, "Thank you: your vote was counted.")
    return redirect("polls:results", question.pk)
