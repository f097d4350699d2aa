"""The example's pages in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from polls.models import Question

from tools.browser import MissingBrowser, chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page
    from pytest_django.live_server_helper import LiveServer

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PHONE = {"width": 360, "height": 740}


def give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Playwright runs an event loop in this thread, in which Django would refuse to query.
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        try:
            found = stack.enter_context(chromium())
        except MissingBrowser as missing:
            give_up(str(missing))
        yield found


@pytest.fixture
def page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    context = browser.new_context(base_url=live_server.url)
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda response: response.status >= 400 and problems.append(response.url))
    yield page
    context.close()
    assert problems == []


@pytest.fixture
def question(live_server: LiveServer) -> Question:
    return ask("What should the night worker have for lunch?", days_ago=1)


@pytest.fixture
def expired(live_server: LiveServer) -> Question:
    return ask("How did you like the harvest fair?", days_ago=45)


def ask(text: str, *, days_ago: int) -> Question:
    published = timezone.now() - timedelta(days=days_ago)
    question = Question.objects.create(
        question_text=text, pub_date=published, expires_date=published + timedelta(days=30)
    )
    for answer, votes in (("Soup and bread", 3), ("Curry", 1), ("Whatever is left", 0)):
        question.choice_set.create(choice_text=answer, votes=votes)
    return question


def log_in(page: Page, path: str) -> None:
    """Go to a page of the admin by way of the login."""
    User.objects.create_superuser("ada", password="analytical engine")
    page.goto(path)
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("analytical engine")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"**{path}")


def test_vote_and_see_the_results(page: Page, question: Question) -> None:
    page.goto("/")
    page.get_by_role("link", name=question.question_text).click()
    page.get_by_label("Curry").check()
    page.get_by_role("button", name="Vote").click()
    page.wait_for_url(f"**/polls/{question.pk}/results/")
    assert page.get_by_role("status").inner_text() == "Thank you: your vote was counted."
    assert page.get_by_role("progressbar", name="Curry").get_attribute("value") == "2"
    assert page.get_by_text("5 votes in all").is_visible()


def test_a_vote_for_nothing_says_what_to_do(
    browser: Browser, live_server: LiveServer, question: Question
) -> None:
    page = browser.new_page(base_url=live_server.url)  # not the fixture: this one gets a 422
    page.goto(f"/polls/{question.pk}/")
    page.get_by_role("button", name="Vote").click()
    assert page.get_by_role("alert").inner_text() == "Choose an answer before you vote."
    page.context.close()


def test_a_poll_is_operated_by_keyboard(page: Page, question: Question) -> None:
    page.goto(f"/polls/{question.pk}/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_label("Soup and bread").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/results/")
    assert page.get_by_role("progressbar", name="Curry").get_attribute("value") == "2"


def test_an_expired_poll_leads_to_its_results(page: Page, expired: Question) -> None:
    page.goto(f"/polls/{expired.pk}/")
    assert page.url.endswith(f"/polls/{expired.pk}/results/")
    assert page.get_by_text("Closed").is_visible()
    assert page.get_by_role("link", name="Vote in this poll").count() == 0


def test_a_poll_that_expires_while_somebody_reads_it_takes_no_vote(page: Page, question: Question) -> None:
    page.goto(f"/polls/{question.pk}/")
    page.get_by_label("Curry").check()
    Question.objects.update(expires_date=timezone.now())
    page.get_by_role("button", name="Vote").click()
    page.wait_for_url("**/results/")
    assert "your vote was not counted" in page.get_by_role("status").inner_text()
    assert page.get_by_text("4 votes in all").is_visible()


def test_the_admin_list_has_the_column(page: Page, question: Question, expired: Question) -> None:
    log_in(page, "/admin/polls/question/")
    assert page.get_by_role("columnheader", name="Expires at").is_visible()
    dates = page.locator("td.field-expires_date").all_inner_texts()
    assert len(dates) == 2
    assert str(expired.expires_date.year) in "".join(dates)


def test_the_admin_form_has_both_dates_under_their_heading(page: Page, question: Question) -> None:
    log_in(page, f"/admin/polls/question/{question.pk}/change/")
    dates = page.locator("fieldset", has=page.get_by_role("heading", name="Date information"))
    for name in ("pub_date", "expires_date"):
        assert dates.locator(f"#id_{name}_0").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone(page: Page, question: Question, expired: Question, scheme: str) -> None:
    Question.objects.update(question_text="Which of all these ways " + "to the harvest fair " * 6 + "x" * 50)
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    for path in ("", f"{question.pk}/", f"{question.pk}/results/", f"{expired.pk}/results/"):
        page.goto(f"/polls/{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(
    page: Page, question: Question, expired: Question, scheme: str
) -> None:
    page.emulate_media(color_scheme=scheme)
    for path in ("", f"{question.pk}/", f"{question.pk}/results/"):
        page.goto(f"/polls/{path}")
        assert page.evaluate(WEAK_CONTRASTS) == [], path


# Every text whose contrast, by the formula of WCAG 2, is under the 4.5 that it asks for.
WEAK_CONTRASTS = """() => {
    const parts = color => (color.match(/[\\d.]+/g) || []).map(Number);
    const light = color => {
        const [r, g, b] = parts(color).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if (parts(color)[3] !== 0) return color;
        }
        return "rgb(255, 255, 255)";
    };
    const contrast = element => {
        const pair = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
    };
    return [...document.body.querySelectorAll("*")]
        .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
        .filter(e => contrast(e) < 4.5)
        .map(e => `${e.tagName} ${e.textContent.trim()} ${contrast(e).toFixed(2)}`);
}"""
