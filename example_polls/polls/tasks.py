"""What workers do for this app. Celery finds this module by itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.mail import EmailMessage
from django.template.defaultfilters import filesizeformat

from polls import reports
from polls.reports import Report
from safemigrate.executors import background

log = logging.getLogger(__name__)

Attachment = tuple[str, bytes, str]
ATTACHED = 1_000_000  # Bytes at the most; many mail servers refuse more than 10 times as much.


@background
def report(person: str, key: str, page: str) -> None:
    """Make the report that a person has asked for, and tell them that it is on the page.

    Delivered twice, it is made once and one mail is sent: the key, which the form brought, says that it is the same.
    """
    user = get_user_model()._default_manager.filter(pk=person).first()
    if user is None or not may_see(user):  # Meanwhile.
        return
    made = Report(person, key)
    if not made.is_ready:
        make(made, user)
    tell_once(made, user, page)
    reports.forget_old()


@background
def forget_old_reports() -> None:
    """For a clock, where months may pass without a new report."""
    reports.forget_old()


def may_see(user: AbstractBaseUser) -> bool:
    """Whether the admin shows them the polls."""
    return any(user.has_perm(f"polls.{do}_question") for do in ("view", "change"))


def make(report: Report, user: AbstractBaseUser) -> None:
    try:
        report.make()
    except Exception:  # Raised again: how a task has failed is for the queue to keep.
        send(user, "Your report of all polls could not be made", FAILED)
        raise


def tell_once(report: Report, user: AbstractBaseUser, page: str) -> None:
    """Send one mail, or, where the worker dies while it sends, none: the page has the report in any case."""
    attached = attachments(report)
    how = "It is attached, and" if attached else f"It has {filesizeformat(report.size)}, too much for a mail;"
    text = READY.format(how=how, days=reports.KEPT.days, page=page)
    if report.mark("mailed") and not send(user, "Your report of all polls", text, attached):
        report.unmark("mailed")


def attachments(report: Report) -> list[Attachment]:
    if report.size > ATTACHED:
        return []
    with report.open() as file:
        return [("polls.csv", file.read(), "text/csv")]


def send(user: AbstractBaseUser, subject: str, text: str, attached: Sequence[Attachment] = ()) -> bool:
    """Return whether it was sent. A mail server that is away loses nobody a report."""
    address = getattr(user, user.get_email_field_name())
    if not address:
        return True
    text = f"Hello {user.get_username()},\n\n{text}"
    mail = EmailMessage(subject, text, to=[address], attachments=list(attached))
    try:
        mail.send()
    except OSError:  # Those of smtplib are OSErrors, too.
        log.exception("No mail could be sent to user %s: %s", user.pk, subject)
        return False
    return True


READY = """the report of all polls that you asked for is ready. {how} for {days} days it is here:
{page}
"""
FAILED = """the report of all polls that you asked for could not be made. Nothing else was lost.
Ask for it again in some minutes; if that fails too, tell those who run the site.
"""
