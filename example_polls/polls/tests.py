from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.core import mail
from django.test import TestCase, TransactionTestCase, override_settings
from django.urls import reverse
from django.utils import timezone

from polls import reports
from polls.models import Question

IN_MEMORY = {"BACKEND": "django.core.files.storage.InMemoryStorage"}


def ask(text: str, *, days_ago: float) -> Question:
    published = timezone.now() - timedelta(days=days_ago)
    question = Question(question_text=text, pub_date=published)
    question.expires_date = published + timedelta(days=30)
    question.save()
    question.choice_set.create(choice_text="Yes")
    question.choice_set.create(choice_text="No")
    return question


class QuestionTests(TestCase):
    def test_was_published_recently(self) -> None:
        for days_ago, recently in ((-0.1, False), (0.9, True), (1.1, False)):
            with self.subTest(days_ago=days_ago):
                assert ask("When?", days_ago=days_ago).was_published_recently() is recently

    def test_is_expired(self) -> None:
        assert not ask("When?", days_ago=29.9).is_expired()
        assert ask("When?", days_ago=30.1).is_expired()


class PageTests(TestCase):
    def test_the_index_says_so_when_there_is_nothing(self) -> None:
        self.assertContains(self.client.get(reverse("polls:index")), "No poll is open right now.")

    def test_the_index_has_the_newest_first(self) -> None:
        for days_ago in (3, 1, 2):
            ask(f"{days_ago} days ago?", days_ago=days_ago)
        response = self.client.get(reverse("polls:index"))
        texts = [question.question_text for question in response.context["latest_question_list"]]
        assert texts == ["1 days ago?", "2 days ago?", "3 days ago?"]

    def test_the_index_has_expired_polls_apart(self) -> None:
        old = ask("Last summer?", days_ago=40)
        response = self.client.get(reverse("polls:index"))
        assert list(response.context["expired_question_list"]) == [old]

    def test_a_future_poll_has_no_page(self) -> None:
        future = ask("Tomorrow?", days_ago=-1)
        assert self.client.get(reverse("polls:detail", args=[future.pk])).status_code == 404

    def test_a_poll_shows_its_answers(self) -> None:
        question = ask("Tea?", days_ago=1)
        self.assertContains(self.client.get(reverse("polls:detail", args=[question.pk])), "Yes")

    def test_a_vote_counts(self) -> None:
        question = ask("Tea?", days_ago=1)
        yes = question.choice_set.get(choice_text="Yes")
        response = self.client.post(reverse("polls:vote", args=[question.pk]), {"choice": yes.pk})
        self.assertRedirects(response, reverse("polls:results", args=[question.pk]))
        yes.refresh_from_db()
        assert yes.votes == 1

    def test_an_expired_poll_takes_no_vote(self) -> None:
        question = ask("Last summer?", days_ago=31)
        yes = question.choice_set.get(choice_text="Yes")
        self.client.post(reverse("polls:vote", args=[question.pk]), {"choice": yes.pk})
        yes.refresh_from_db()
        assert yes.votes == 0


class AdminTests(TestCase):
    def setUp(self) -> None:
        self.client.force_login(User.objects.create_superuser("ada"))

    def test_a_poll_is_made_found_and_changed(self) -> None:
        posted = {
            "question_text": "Tea?",
            "pub_date_0": "2026-01-01",
            "pub_date_1": "12:00",
            "expires_date_0": "2026-01-31",
            "expires_date_1": "12:00",
            "choice_set-TOTAL_FORMS": "0",
            "choice_set-INITIAL_FORMS": "0",
        }
        assert self.client.post(reverse("admin:polls_question_add"), posted).status_code == 302
        question = Question.objects.get()
        self.assertContains(self.client.get(reverse("admin:polls_question_changelist")), "Tea?")
        change = reverse("admin:polls_question_change", args=[question.pk])
        assert self.client.post(change, posted | {"question_text": "Coffee?"}).status_code == 302
        question.refresh_from_db()
        assert question.question_text == "Coffee?"


@override_settings(STORAGES=settings.STORAGES | {"reports": IN_MEMORY}, SAFEMIGRATE_EXECUTOR="inline")
class ReportTests(TransactionTestCase):
    def test_it_is_asked_for_made_and_told(self) -> None:
        ada = User.objects.create_superuser("ada", "ada@example.com")
        self.client.force_login(ada)
        ask("=Tea?", days_ago=1)
        posted = {"key": "0b2fd1d2-58ad-4f0a-9f0c-0f2b7f0d9a11"}
        page = self.client.post(reverse("admin:polls_question_report"), posted, follow=True)
        self.assertContains(page, "Your report is ready")
        (report,) = reports.of(str(ada.pk))
        with report.open() as file:
            assert ",'=Tea?," in file.read().decode()
        assert [sent.to for sent in mail.outbox] == [["ada@example.com"]]
