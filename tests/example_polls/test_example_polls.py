"""The example's pages, its admin, the command that seeds it, and its database URLs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from mysite import database_urls
from polls.models import Choice, Question

pytestmark = pytest.mark.django_db


def ask(text: str, *, days_ago: float, answers: tuple[str, ...] = ("Yes", "No")) -> Question:
    published = timezone.now() - timedelta(days=days_ago)
    question = Question.objects.create(
        question_text=text, pub_date=published, expires_date=published + timedelta(days=30)
    )
    for answer in answers:
        question.choice_set.create(choice_text=answer)
    return question


def votes(choice: Choice) -> int:
    choice.refresh_from_db()
    return choice.votes


def page(name: str, question: Question) -> str:
    return reverse(f"polls:{name}", args=[question.pk])


class TestIndex:
    def test_the_root_leads_to_it(self, client: Client) -> None:
        assert client.get("/").headers["Location"] == reverse("polls:index")

    def test_open_and_closed_polls_are_apart_with_the_newest_first(self, client: Client) -> None:
        for days_ago in (3, 1, 60, 40):
            ask(f"{days_ago} days ago?", days_ago=days_ago)
        response = client.get(reverse("polls:index"))
        assert [q.question_text for q in response.context["latest_question_list"]] == [
            "1 days ago?",
            "3 days ago?",
        ]
        assert [q.question_text for q in response.context["expired_question_list"]] == [
            "40 days ago?",
            "60 days ago?",
        ]

    def test_a_poll_is_marked_and_leads_where_it_can_be_used(self, client: Client) -> None:
        new, old = ask("New?", days_ago=1), ask("Old?", days_ago=40)
        html = client.get(reverse("polls:index")).content.decode()
        assert f'href="{page("detail", new)}"' in html
        assert f'href="{page("results", old)}"' in html
        assert html.count("Open until") == html.count("badge closed") == 1

    def test_a_future_poll_is_hidden(self, client: Client) -> None:
        future = ask("Tomorrow?", days_ago=-1)
        response = client.get(reverse("polls:index"))
        assert "Tomorrow?" not in response.content.decode()
        assert "No poll is open right now." in response.content.decode()
        for name in ("detail", "results"):
            assert client.get(page(name, future)).status_code == 404
        assert client.post(page("vote", future)).status_code == 404

    def test_text_is_escaped(self, client: Client) -> None:
        ask("<script>alert(1)</script>", days_ago=1)
        assert "<script>" not in client.get(reverse("polls:index")).content.decode()


class TestVote:
    def test_a_vote_counts_once_and_leads_to_the_results(self, client: Client) -> None:
        question = ask("Tea?", days_ago=1)
        yes, no = question.choice_set.order_by("pk")
        response = client.post(page("vote", question), {"choice": yes.pk}, follow=True)
        assert response.redirect_chain == [(page("results", question), 302)]
        assert "your vote was counted" in response.content.decode()
        assert (votes(yes), votes(no)) == (1, 0)

    def test_the_database_adds_to_what_is_there_by_then(self, client: Client) -> None:
        question = ask("Tea?", days_ago=1)
        yes = question.choice_set.order_by("pk")[0]
        for _ in range(3):
            client.post(page("vote", question), {"choice": yes.pk})
        assert votes(yes) == 3

    @pytest.mark.parametrize("choice", ["", "nonsense", "0", "other poll"])
    def test_what_is_no_answer_of_this_poll_is_refused_in_words(self, client: Client, choice: str) -> None:
        question, other = ask("Tea?", days_ago=1), ask("Coffee?", days_ago=1)
        foreign = other.choice_set.order_by("pk")[0]
        posted = str(foreign.pk) if choice == "other poll" else choice
        response = client.post(page("vote", question), {"choice": posted})
        assert response.status_code == 422
        assert 'role="alert"' in response.content.decode()
        assert not Choice.objects.filter(votes__gt=0).exists()

    def test_an_expired_poll_takes_none_and_leads_to_its_results(self, client: Client) -> None:
        question = ask("Last summer?", days_ago=31)
        yes = question.choice_set.order_by("pk")[0]
        response = client.post(page("vote", question), {"choice": yes.pk}, follow=True)
        assert response.redirect_chain == [(page("results", question), 302)]
        assert "your vote was not counted" in response.content.decode()
        assert votes(yes) == 0

    def test_only_by_post(self, client: Client) -> None:
        assert client.get(page("vote", ask("Tea?", days_ago=1))).status_code == 405

    def test_without_the_token_it_is_refused(self) -> None:
        question = ask("Tea?", days_ago=1)
        yes = question.choice_set.order_by("pk")[0]
        response = Client(enforce_csrf_checks=True).post(page("vote", question), {"choice": yes.pk})
        assert response.status_code == 403
        assert votes(yes) == 0


class TestDetailAndResults:
    def test_an_open_poll_shows_a_labelled_button_per_answer(self, client: Client) -> None:
        html = client.get(page("detail", ask("Tea?", days_ago=1))).content.decode()
        assert html.count('type="radio"') == html.count('<label class="answer">') == 2

    def test_an_expired_poll_leads_to_its_results(self, client: Client) -> None:
        question = ask("Last summer?", days_ago=31)
        response = client.get(page("detail", question))
        assert (response.status_code, response.headers["Location"]) == (302, page("results", question))

    def test_results_are_sorted_and_summed(self, client: Client) -> None:
        question = ask("Tea?", days_ago=1)
        question.choice_set.filter(choice_text="No").update(votes=2)
        question.choice_set.filter(choice_text="Yes").update(votes=1)
        response = client.get(page("results", question))
        assert [choice.choice_text for choice in response.context["choices"]] == ["No", "Yes"]
        assert "3 votes in all" in response.content.decode()

    def test_a_poll_without_answers_has_pages_too(self, client: Client) -> None:
        question = ask("Silence?", days_ago=1, answers=())
        assert "no answers yet" in client.get(page("detail", question)).content.decode()
        assert "0 votes in all" in client.get(page("results", question)).content.decode()


class TestQuestion:
    @pytest.mark.parametrize(("days_ago", "recently"), [(-0.1, False), (0.9, True), (1.1, False)])
    def test_was_published_recently(self, days_ago: float, recently: bool) -> None:
        assert ask("When?", days_ago=days_ago).was_published_recently() is recently

    @pytest.mark.parametrize(("days_ago", "expired"), [(29.9, False), (30.1, True)])
    def test_is_expired(self, days_ago: float, expired: bool) -> None:
        assert ask("When?", days_ago=days_ago).is_expired() is expired


class TestAdmin:
    @pytest.fixture
    def staff(self, client: Client) -> Client:
        client.force_login(User.objects.create_superuser("ada"))
        return client

    def test_the_list_has_the_columns_filters_and_search(self, staff: Client) -> None:
        ask("Tea?", days_ago=1)
        ask("Coffee?", days_ago=1)
        response = staff.get(reverse("admin:polls_question_changelist"), {"q": "coffee"})
        html = response.content.decode()
        for column in ("question_text", "pub_date", "expires_date", "was_published_recently"):
            assert f"column-{column}" in html
        assert "By expires at" in html
        assert "Coffee?" in html
        assert "Tea?" not in html

    def test_both_dates_stand_under_date_information_and_the_answers_inline(self, staff: Client) -> None:
        question = ask("Tea?", days_ago=1)
        response = staff.get(reverse("admin:polls_question_change", args=[question.pk]))
        form = response.context["adminform"]
        assert [(fieldset.name, fieldset.fields) for fieldset in form] == [
            (None, ("question_text",)),
            ("Date information", ("pub_date", "expires_date")),
        ]
        assert 'name="choice_set-1-choice_text" value="No"' in response.content.decode()

    def test_a_poll_without_an_expiry_is_refused(self, staff: Client) -> None:
        posted = {
            "question_text": "Tea?",
            "pub_date_0": "2026-01-01",
            "pub_date_1": "12:00",
            "choice_set-TOTAL_FORMS": "0",
            "choice_set-INITIAL_FORMS": "0",
        }
        response = staff.post(reverse("admin:polls_question_add"), posted)
        assert "expires_date" in response.context["adminform"].form.errors
        posted |= {"expires_date_0": "2026-01-31", "expires_date_1": "12:00"}
        assert staff.post(reverse("admin:polls_question_add"), posted).status_code == 302
        assert Question.objects.get().expires_date.day == 31


class TestSeedPolls:
    def test_it_makes_polls_with_answers_and_dates(self) -> None:
        call_command("seed_polls", "300", "--choices", "2", verbosity=0)
        assert (Question.objects.count(), Choice.objects.count()) == (300, 600)
        oldest, newest = Question.objects.order_by("pub_date")[0], Question.objects.latest("pub_date")
        assert timedelta(days=600) < newest.pub_date - oldest.pub_date <= timedelta(days=730)
        assert newest.pub_date <= timezone.now()
        assert all(question.choice_set.count() == 2 for question in Question.objects.all()[:20])
        assert newest.expires_date - newest.pub_date == timedelta(days=30)

    def test_the_same_seed_makes_the_same_polls(self) -> None:
        def seeded(seed: int) -> list[tuple[str, str, int]]:
            Question.objects.all().delete()
            call_command("seed_polls", "20", seed=seed, verbosity=0)
            return list(
                Choice.objects.order_by("pk").values_list("question__question_text", "choice_text", "votes")
            )

        first = seeded(7)
        assert len(first) == 60
        assert seeded(7) == first
        assert seeded(8) != first

    @pytest.mark.django_db(databases=["default", "archive"])
    def test_another_database(self) -> None:
        call_command("seed_polls", "3", "--database", "archive", verbosity=0)
        assert Question.objects.using("archive").count() == 3
        assert not Question.objects.using("default").exists()

    @pytest.mark.django_db(transaction=True)
    def test_it_fills_a_table_that_does_not_have_the_new_column_yet(self) -> None:
        executor = MigrationExecutor(connection)
        executor.migrate([("polls", "0002_alter_question_pub_date")])
        try:
            call_command("seed_polls", "5", verbosity=0)
        finally:
            executor = MigrationExecutor(connection)
            executor.migrate([("polls", "0003_question_expires_date")])
        filled = Question.objects.values_list("pub_date", "expires_date")
        assert len(filled) == 5
        assert all(expires == published + timedelta(days=30) for published, expires in filled)

    @pytest.mark.parametrize("arguments", [("-1",), ("1", "--choices", "99")])
    def test_senseless_numbers_are_refused(self, arguments: tuple[str, ...]) -> None:
        with pytest.raises(CommandError):
            call_command("seed_polls", *arguments)


class TestDatabaseUrls:
    def test_a_server_with_everything(self) -> None:
        url = (
            "postgresql://ada:p%40ss%2Fword@db.example.com:5433/my%20polls?sslmode=require&application_name=a"
        )
        assert database_urls.parse(url) == {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "my polls",
            "USER": "ada",
            "PASSWORD": "p@ss/word",
            "HOST": "db.example.com",
            "PORT": "5433",
            "OPTIONS": {"sslmode": "require", "application_name": "a"},
        }

    def test_a_server_with_little(self) -> None:
        parsed = database_urls.parse("postgres:///polls")
        assert (parsed["NAME"], parsed["HOST"], parsed["PORT"], parsed["USER"]) == ("polls", "", "", "")

    @pytest.mark.parametrize("scheme", ["mysql", "mariadb"])
    def test_mysql_has_a_driver_after_it(self, scheme: str) -> None:
        parsed = database_urls.parse(f"{scheme}://root@127.0.0.1:3307/polls")
        assert (parsed["ENGINE"], parsed["PORT"]) == ("django.db.backends.mysql", "3307")
        import MySQLdb  # is there, or PyMySQL stands in for it

        assert MySQLdb.version_info >= (1, 4)

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("sqlite:///polls.sqlite3", "polls.sqlite3"),
            ("sqlite:////srv/a%20b/polls.sqlite3", "/srv/a b/polls.sqlite3"),
            ("sqlite:///:memory:", ":memory:"),
        ],
    )
    def test_sqlite(self, url: str, name: str) -> None:
        assert database_urls.parse(url) == {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": name,
            "OPTIONS": {},
        }

    @pytest.mark.parametrize("url", ["oracle://db/polls", "polls.sqlite3", ""])
    def test_another_kind_is_refused_with_what_can_be_used(self, url: str) -> None:
        with pytest.raises(ImproperlyConfigured, match="use one of sqlite://, postgresql://"):
            database_urls.parse(url)


def test_the_pages_need_no_other_host(client: Client) -> None:
    html = client.get(reverse("polls:index")).content.decode()
    style = Path(__file__).parents[2] / "example_polls/polls/static/polls/style.css"
    assert "//" not in html.replace("<!doctype html>", "")
    assert "url(" not in style.read_text()
