from __future__ import annotations

import random
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from django.apps.registry import Apps
from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations.loader import MigrationLoader
from django.db.models import Model
from django.utils import timezone

from polls.vocabulary import ANSWERS_MAX, invent_poll

BATCH = 5_000
PUBLISHED_WITHIN = timedelta(days=730)
OPEN_FOR = timedelta(days=30)


class Command(BaseCommand):
    help = "Make polls, each with a question, a date in the last two years and a few answers."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("polls", type=int, metavar="N", help="how many polls to make")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))
        parser.add_argument(
            "--choices", type=int, default=3, help=f"answers per poll, 0 to {ANSWERS_MAX} (default: 3)"
        )
        parser.add_argument("--seed", type=int, default=1, help="same seed, same polls (default: 1)")

    def handle(self, *, polls: int, database: str, choices: int, seed: int, **options: Any) -> None:
        if polls < 0 or not 0 <= choices <= ANSWERS_MAX:
            raise CommandError(f"Give N as 0 or more, and --choices as 0 to {ANSWERS_MAX}.")
        Seeder(database, choices, random.Random(seed)).make(polls)
        if options["verbosity"]:
            self.stdout.write(f"Made {polls:,} polls with {choices} choices each on {database}.")


class Seeder:
    """Writes polls with the models as this database's applied migrations have them.

    So the same command fills a table before a later migration adds a column to it.
    """

    def __init__(self, alias: str, choices: int, rng: random.Random) -> None:
        apps = applied_models(alias)
        self.question: type[Model] = apps.get_model("polls", "Question")
        self.choice: type[Model] = apps.get_model("polls", "Choice")
        self.alias, self.choices, self.rng = alias, choices, rng
        self.now = timezone.now()
        self.expires = any(field.name == "expires_date" for field in self.question._meta.fields)

    def make(self, polls: int) -> None:
        for start in range(0, polls, BATCH):
            self.make_batch(min(BATCH, polls - start))

    def make_batch(self, size: int) -> None:
        polls = [invent_poll(self.rng) for _ in range(size)]
        keys = self.question._base_manager.using(self.alias).values_list("pk", flat=True)
        last = keys.order_by("-pk").first() or 0
        self.save(self.build_question(text) for text, _ in polls)
        # Read back, since not every database returns the keys of a bulk insert.
        new = keys.filter(pk__gt=last).order_by("pk")
        self.save(self.build_choices(new, (answers for _, answers in polls)))

    def save(self, rows: Iterable[Model]) -> None:
        rows = list(rows)
        if rows:
            type(rows[0])._base_manager.using(self.alias).bulk_create(rows)

    def build_question(self, text: str) -> Model:
        published = self.now - PUBLISHED_WITHIN * self.rng.random()
        values = {"question_text": text, "pub_date": published}
        if self.expires:
            values["expires_date"] = published + OPEN_FOR
        return self.question(**values)

    def build_choices(self, keys: Iterable[int], polls: Iterable[tuple[str, ...]]) -> Iterator[Model]:
        for key, answers in zip(keys, polls, strict=False):
            for text in answers[: self.choices]:
                yield self.choice(question_id=key, choice_text=text, votes=int(self.rng.random() ** 2 * 400))


def applied_models(alias: str) -> Apps:
    loader = MigrationLoader(connections[alias])
    applied = [key for key in loader.graph.nodes if key in loader.applied_migrations]
    if not any(app == "polls" for app, _ in applied):
        raise CommandError(
            f"The tables are missing on {alias}: run `manage.py migrate --database {alias}` first."
        )
    return loader.project_state(applied).apps
