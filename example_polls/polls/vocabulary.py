"""Questions and answers for the seeded polls, put together from a few words."""

from __future__ import annotations

import random

TEAMS = ("design", "support", "platform", "finance", "research", "night shift", "warehouse", "front desk")
PLACES = ("Lisbon", "Nairobi", "Prague", "Montréal", "Kyoto", "Tromsø", "Valparaíso", "Leeds", "Chennai")
EVENTS = (
    "summer party",
    "science fair",
    "book club",
    "film night",
    "flower show",
    "chess evening",
    "harvest fair",
)
THINGS = (
    "bicycle shed",
    "reading room",
    "swimming pool",
    "boat house",
    "tool library",
    "canteen",
    "playground",
)
SEASONS = ("this spring", "this summer", "this autumn", "this winter", "next year", "on the first Friday")

TOPICS = (
    (
        "What should the {team} team in {place} have for lunch {season}?",
        ("Soup and bread", "Curry", "Pizza", "A large salad", "Whatever is left"),
    ),
    (
        "When should the {team} team in {place} hold its weekly meeting {season}?",
        ("Monday morning", "Wednesday at noon", "Thursday afternoon", "Never, write it down", "Friday"),
    ),
    (
        "Which colour should the {thing} in {place} be painted {season}?",
        ("Sea green", "Brick red", "Sunflower yellow", "Leave the bare wood", "Dark blue"),
    ),
    (
        "How did you like the {event} in {place}?",
        ("Loved it", "It was good", "It was too long", "I missed it", "Not for me"),
    ),
    (
        "Should {place} open its {thing} on Sundays {season}?",
        ("Yes, all day", "Yes, after ten", "Only in the holidays", "No", "I have no view"),
    ),
    (
        "How do you get to the {event} in {place} {season}?",
        ("On foot", "By bicycle", "By bus or train", "By car", "I watch from home"),
    ),
    (
        "What does the {thing} in {place} need most?",
        ("A new roof", "Better light", "More seats", "A kettle", "Nothing at all"),
    ),
    (
        "Who should open the {event} in {place} {season}?",
        ("The {team} team", "The children's choir", "The mayor", "Last year's winner", "Nobody, just begin"),
    ),
)

ANSWERS_MAX = min(len(answers) for _, answers in TOPICS)


def invent_poll(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """Return a question and its answers."""
    question, answers = rng.choice(TOPICS)
    words = {
        "team": rng.choice(TEAMS),
        "place": rng.choice(PLACES),
        "event": rng.choice(EVENTS),
        "thing": rng.choice(THINGS),
        "season": rng.choice(SEASONS),
    }
    return question.format_map(words), tuple(answer.format_map(words) for answer in answers)
