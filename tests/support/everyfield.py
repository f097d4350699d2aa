"""Every kind of field with the values that it takes, and custom fields with each hook that Django calls in save()."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.postgres import fields as pg
from django.contrib.postgres.search import SearchVectorField
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.backends.postgresql.psycopg_any import (
    DateRange,
    DateTimeTZRange,
    NumericRange,
)
from django.db.models import Value
from django.db.models.functions import Upper
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import strategies as st

APP = "boxes"
PAGES = 12


class Draft(models.TextChoices):
    DRAFT = "d", "Draft"
    OUT = "o'\\", "Out"


class Rank(models.IntegerChoices):
    LOW = 1, "low"
    HIGH = 30000, "high"


# Custom fields, each with one of the hooks


class Cents(models.Field):
    """get_prep_value: a decimal, kept as a whole number."""

    def db_type(self, connection: Any) -> str:
        return "bigint"

    def get_prep_value(self, value: Any) -> Any:
        return None if value is None else int(value * 100)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return None if value is None else Decimal(value) / 100


class Backwards(models.CharField):
    """get_db_prep_value: as Django documents it, with `prepared`."""

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        value = super().get_db_prep_value(value, connection, prepared)
        return value if value is None else value[::-1]


class Saved(models.CharField):
    """get_db_prep_save: what is saved is not what is looked up."""

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        value = super().get_db_prep_save(value, connection)
        return value if value is None or hasattr(value, "as_sql") else f"saved {value}"


class SealedInSQL(models.TextField):
    """get_placeholder, as fields have it that encrypt in the database: get_placeholder_sql from Django 6.1 on."""

    sql = "REPLACE(UPPER(%s), 'A', '*')"

    def get_placeholder(self, value: Any, compiler: Any, connection: Any) -> str:
        return "%s" if hasattr(value, "as_sql") else self.sql

    def get_placeholder_sql(self, value: Any, compiler: Any, connection: Any) -> Any:
        return compiler.compile(value) if hasattr(value, "as_sql") else (self.sql, (value,))


class SavedAsExpression(models.CharField):
    """get_db_prep_save that returns an expression, which an UPDATE of Django's takes."""

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:
        value = super().get_db_prep_save(value, connection)
        return value if value is None or hasattr(value, "as_sql") else Upper(Value(value))


class Touched(models.CharField):
    """pre_save: the model's own say when it is saved, as auto_now has it."""

    def pre_save(self, model_instance: Any, add: bool) -> Any:
        return "by pre_save"


class Sealed(models.BinaryField):
    """Bytes that are other ones in the database."""

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        if value is not None:
            value = bytes(byte ^ 0x5A for byte in value)
        return super().get_db_prep_value(value, connection, prepared)

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return None if value is None else bytes(byte ^ 0x5A for byte in bytes(value))


class AsGiven(models.Field):
    """No hook at all: the driver gets the value, of whatever type, and the column is a text."""

    def db_type(self, connection: Any) -> str:
        return "varchar(60)"


class OfType(models.Field):
    """A type of PostgreSQL's that Django has no field for."""

    def __init__(self, kind: str = "text", **options: Any) -> None:
        self.kind = kind
        super().__init__(**options)

    def db_type(self, connection: Any) -> str:
        return self.kind

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, kwargs | {"kind": self.kind}


# Values


def chars(limit: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=limit)


def moments(least: dt.datetime, most: dt.datetime) -> st.SearchStrategy[dt.datetime]:
    zones = st.sampled_from(
        [dt.timezone.utc, ZoneInfo("Asia/Kolkata"), ZoneInfo("America/New_York"), ODD_ZONE]
    )
    return st.datetimes(least, most, timezones=zones)


#: As some zones were before they had whole minutes.
ODD_ZONE = dt.timezone(dt.timedelta(hours=-4, minutes=-56, seconds=-2))
FIRST, LAST = dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29)  # noqa: DTZ001  hypothesis adds the zone
UTC_MOMENT = dt.datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=dt.timezone.utc)

NASTY = [
    "",
    "NULL",
    "null",
    "\\N",
    "it's",
    'a "quoted" text',
    "back\\slash\\",
    "{a,b}",
    "100 % %s %(name)s",
    "line\nline\r\n\ttab",
    "  spaces  ",
    "Grüße 😀",
    "$1 $$ {0}",
]

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | chars(9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(chars(5), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: value is not None)


def integers(bits: int, *, positive: bool = False) -> st.SearchStrategy[int]:
    most = 2 ** (bits - 1) - 1
    return st.integers(0 if positive else -most - 1, most)


def unsigned_zero(value: float) -> float:
    return value or 0.0


def finite() -> st.SearchStrategy[float]:
    return st.floats(allow_nan=False, allow_infinity=False).map(unsigned_zero)


def uuids() -> st.SearchStrategy[uuid.UUID]:
    """Return a strategy of those that follow the standard: MariaDB refuses others."""
    return st.uuids(version=4) | st.uuids(version=1)


def decimals(digits: int, places: int) -> st.SearchStrategy[Decimal]:
    most = Decimal(10) ** (digits - places) - 1
    return st.decimals(-most, most, places=places, allow_nan=False, allow_infinity=False)


@dataclass(frozen=True)
class Kind:
    """A kind of field: how one is made, values that any database takes, and some that are always tried."""

    make: Callable[..., Any]
    values: st.SearchStrategy[Any]
    always: Sequence[Any] = ()
    unique: bool = False

    def rows(self, number: int) -> st.SearchStrategy[list[Any]]:
        """Return a strategy of a value for each row."""
        values = (
            st.sampled_from(self.always) | self.values if self.always and not self.unique else self.values
        )
        return st.lists(values, min_size=number, max_size=number, unique=self.unique)

    def example(self, number: int) -> list[Any] | None:
        return [self.always[n % len(self.always)] for n in range(number)] if self.always else None


def text(make: Callable[..., Any], limit: int, *always: Any) -> Kind:
    return Kind(make, chars(limit), always or NASTY)


def relation(make: Callable[..., Any], to_field: str, values: Sequence[Any]) -> Kind:
    def made(**options: Any) -> Any:
        return make(f"{APP}.page", models.CASCADE, related_name="+", to_field=to_field, **options)

    return Kind(made, st.sampled_from(values), unique=make is models.OneToOneField)


NUMBERS = range(1, PAGES + 1)
CODES = [uuid.UUID(int=n << 64 | 1) for n in NUMBERS]
SLUGS = [f"{nasty} {n}" for n, nasty in zip(NUMBERS, NASTY, strict=False)]


def page_fields() -> list[tuple[str, Any]]:
    """Return the fields of the model that relations refer to."""
    return [
        ("id", models.BigIntegerField(primary_key=True)),
        ("code", models.UUIDField(unique=True)),
        ("slug", models.CharField(max_length=40, unique=True)),
        ("title", models.CharField(max_length=40)),
    ]


def pages(model: Any) -> list[Any]:
    rows = zip(NUMBERS, CODES, SLUGS, strict=True)
    return [model(id=number, code=code, slug=slug, title=slug.upper()) for number, code, slug in rows]


def char(**options: Any) -> Any:
    return models.CharField(max_length=90, **options)


KINDS: dict[str, Kind] = {
    "BigInteger": Kind(models.BigIntegerField, integers(64), [2**63 - 1, -(2**63), 0, True, "7"]),
    "Binary": Kind(
        models.BinaryField,
        st.binary(max_size=20),
        [b"", b"\0'\\%s\xff", bytearray(b"\x80ab"), memoryview(b"view")],
    ),
    "Boolean": Kind(models.BooleanField, st.booleans(), [True, False, 1, 0, "t", "False"]),
    "Char": text(char, 90, *NASTY, gettext_lazy("Delete"), mark_safe("<b>'safe'</b>"), 12),
    "Char with choices": Kind(
        lambda **options: models.CharField(max_length=9, choices=Draft, **options),
        st.sampled_from(Draft),
        [Draft.DRAFT, "d", Draft.OUT],
    ),
    "Text": text(models.TextField, 300),
    "Date": Kind(
        models.DateField,
        st.dates(),
        [dt.date.min, dt.date.max, dt.date(2024, 2, 29), "2026-03-01", UTC_MOMENT],
    ),
    "DateTime": Kind(
        models.DateTimeField,
        moments(FIRST, LAST),
        [
            UTC_MOMENT,
            UTC_MOMENT.replace(microsecond=0),
            UTC_MOMENT.replace(microsecond=10),
            "2026-03-01T10:00Z",
        ],
    ),
    "Decimal": Kind(
        lambda **options: models.DecimalField(max_digits=12, decimal_places=3, **options),
        decimals(12, 3),
        [
            Decimal("-0.001"),
            Decimal("1E+3"),
            Decimal("-0"),
            Decimal("1.50"),
            7,
            "2.5",
            0.1,
            Decimal("1.2344"),
        ],
    ),
    "Decimal with many digits": Kind(
        lambda **options: models.DecimalField(max_digits=50, decimal_places=25, **options),
        # SQLite keeps them as floats, which Django cannot read near the field's limits.
        decimals(45, 25),
    ),
    "Decimal without places": Kind(
        lambda **options: models.DecimalField(max_digits=5, decimal_places=0, **options), decimals(5, 0)
    ),
    "Duration": Kind(
        models.DurationField,
        st.timedeltas(dt.timedelta(days=-(10**7)), dt.timedelta(days=10**7)),
        [dt.timedelta(0), dt.timedelta(microseconds=-1), dt.timedelta(days=-1, hours=25)],
    ),
    "Email": text(models.EmailField, 60, "o'hara@example.com"),
    "File": Kind(models.FileField, chars(60).filter(bool), ['uploads/it\'s a "file".txt']),
    "FilePath": Kind(models.FilePathField, chars(60), ["/srv/a \\ b/{c}.txt"]),
    "Float": Kind(
        models.FloatField,
        finite(),
        [0.1, 5e-324, 1.7976931348623157e308, 1e22, 3, "2.5", Decimal("0.3")],
    ),
    "ForeignKey": relation(models.ForeignKey, "id", NUMBERS),
    "ForeignKey to a uuid": relation(models.ForeignKey, "code", CODES),
    "ForeignKey to a text": relation(models.ForeignKey, "slug", SLUGS),
    "OneToOne": relation(models.OneToOneField, "id", NUMBERS),
    "OneToOne to a uuid": relation(models.OneToOneField, "code", CODES),
    "OneToOne to a text": relation(models.OneToOneField, "slug", SLUGS),
    "GenericIPAddress": Kind(
        models.GenericIPAddressField,
        st.ip_addresses().map(str),
        ["1.2.3.4", "::1", "::ffff:1.2.3.4", "2001:DB8:0:0::1"],
    ),
    "GenericIPAddress v4": Kind(
        lambda **options: models.GenericIPAddressField(protocol="IPv4", **options),
        st.ip_addresses(v=4).map(str),
    ),
    "Integer": Kind(models.IntegerField, integers(32), [-(2**31), 2**31 - 1, 0, True, "7", Rank.HIGH]),
    "Integer with choices": Kind(
        lambda **options: models.SmallIntegerField(choices=Rank, **options),
        st.sampled_from(Rank),
        [Rank.LOW, 30000],
    ),
    "JSON": Kind(
        models.JSONField,
        JSONS,
        [
            {},
            [],
            "",
            "null",
            0,
            False,
            2**70,
            1.5e300,
            {"a": None, "it's": ['"', "\\", "100 %s", 1.0]},
            [[], [None]],
        ],
    ),
    "JSON with an encoder": Kind(
        lambda **options: models.JSONField(encoder=DjangoJSONEncoder, **options),
        st.dictionaries(chars(5), st.datetimes() | st.uuids() | st.decimals(allow_nan=False), max_size=3),
        [{"at": UTC_MOMENT, "for": dt.timedelta(days=1), "sum": Decimal("1.50")}],
    ),
    "PositiveBigInteger": Kind(models.PositiveBigIntegerField, integers(64, positive=True), [2**63 - 1, 0]),
    "PositiveInteger": Kind(models.PositiveIntegerField, integers(32, positive=True), [2**31 - 1, 0]),
    "PositiveSmallInteger": Kind(models.PositiveSmallIntegerField, integers(16, positive=True), [32767, 0]),
    "Slug": text(models.SlugField, 50, "a-slug", ""),
    "SmallInteger": Kind(models.SmallIntegerField, integers(16), [-32768, 32767]),
    "Time": Kind(models.TimeField, st.times(), [dt.time.min, dt.time.max, dt.time(1, 2, 3), "10:20"]),
    "URL": text(models.URLField, 90, "https://example.com/?a=1&b=%20"),
    "UUID": Kind(models.UUIDField, uuids(), [uuid.UUID(int=0), "12345678123456781234567812345678", 7]),
    "get_prep_value": Kind(Cents, decimals(9, 2), [Decimal("-0.01"), 3]),
    "get_db_prep_value": text(lambda **options: Backwards(max_length=60, **options), 60, *NASTY[:6]),
    "get_db_prep_save": text(lambda **options: Saved(max_length=90, **options), 60, *NASTY[:6]),
    "get_placeholder": text(SealedInSQL, 60, "banana", "null", "it's 100 %"),
    "an expression from get_db_prep_save": text(
        lambda **options: SavedAsExpression(max_length=90, **options), 20, "it's", ""
    ),
    "encrypted Binary": Kind(Sealed, st.binary(max_size=20), [b"", b"secret"]),
    "as the driver takes it": Kind(
        AsGiven,
        chars(60) | integers(64) | decimals(9, 2),
        ["x", 1, Decimal("1.5"), Decimal("1.50"), "it's", 2**62, 0.5, True],
    ),
    "numbers as the driver takes them": Kind(
        AsGiven, integers(64) | decimals(9, 2), [1, Decimal("1.5"), Decimal("1.50"), 2**62, -1]
    ),
}


# PostgreSQL's own


def array(base: Any, **given: Any) -> Callable[..., Any]:
    return lambda **options: pg.ArrayField(base(), **given, **options)


def lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, max_size=4)


def ranges(kind: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def ordered(ends: tuple[Any, Any], bounds: str) -> Any:
        low, high = ends
        if low is not None and high is not None and low > high:
            low, high = high, low
        return kind(low, high, bounds)

    ends = st.tuples(st.none() | values, st.none() | values)
    return st.builds(ordered, ends, st.sampled_from(["[)", "(]", "[]", "()"]))


POSTGRESQL: dict[str, Kind] = {
    "Array of Char": Kind(
        array(lambda: models.CharField(max_length=20)),
        lists(chars(20)),
        [[], [None], ["NULL", "null", None, ""], ['a "b"', "c\\", "{d,e}", "it's", "100 %s"], ("a", "b")],
    ),
    "Array of Integer": Kind(array(models.IntegerField), lists(integers(32)), [[], [1, None], [2**31 - 1]]),
    "Array of Array": Kind(
        array(array(models.CharField)),
        st.integers(1, 3).flatmap(  # Not of width 0: PostgreSQL before 17 does not read {{}}.
            lambda width: st.lists(st.lists(st.none() | chars(5), min_size=width, max_size=width), max_size=3)
        ),
        [[], [["a,b", None], ['"', "\\"]], [[""]]],
    ),
    "Array of DateTime": Kind(array(models.DateTimeField), lists(moments(FIRST, LAST)), [[UTC_MOMENT, None]]),
    "Array of Decimal": Kind(
        array(lambda: models.DecimalField(max_digits=9, decimal_places=2)),
        lists(decimals(9, 2)),
        [[Decimal("1.50")]],
    ),
    "Array of Float": Kind(
        array(models.FloatField),
        lists(st.floats().map(unsigned_zero)),
        [[0.1, None, float("nan"), float("inf")]],
    ),
    "Array of Boolean": Kind(array(models.BooleanField), lists(st.booleans()), [[True, None, False]]),
    "Array of UUID": Kind(array(models.UUIDField), lists(st.uuids()), [[uuid.UUID(int=0), None]]),
    "Array of Date": Kind(array(models.DateField), lists(st.dates()), [[dt.date.max]]),
    "Array of Duration": Kind(
        array(models.DurationField), lists(st.timedeltas()), [[dt.timedelta(days=-1, hours=3)]]
    ),
    "Array of Binary": Kind(array(models.BinaryField), lists(st.binary(max_size=5)), [[b"\0\xff'", None]]),
    "Array of JSON": Kind(
        array(models.JSONField), st.lists(JSONS, max_size=3), [[{"a": ['"', "\\"]}, [], "null"]]
    ),
    "Array of IP addresses": Kind(
        array(models.GenericIPAddressField), lists(st.ip_addresses().map(str)), [["::1", "1.2.3.4", None]]
    ),
    "Float not finite": Kind(
        models.FloatField, st.floats().map(unsigned_zero), [float("nan"), float("inf"), float("-inf"), 1.5]
    ),
    "IntegerRange": Kind(
        pg.IntegerRangeField,
        ranges(NumericRange, st.integers(-99, 99)),
        [(1, 5), NumericRange(empty=True), (None, 3)],
    ),
    "BigIntegerRange": Kind(pg.BigIntegerRangeField, ranges(NumericRange, st.integers(-(2**60), 2**60))),
    "DecimalRange": Kind(
        pg.DecimalRangeField,
        ranges(NumericRange, decimals(9, 2)),
        [(Decimal("1.5"), Decimal(2)), (None, None)],
    ),
    "DateRange": Kind(
        pg.DateRangeField,
        ranges(DateRange, st.dates(max_value=dt.date(9999, 12, 30))),
        [DateRange(empty=True), (dt.date(2026, 1, 1), None)],
    ),
    "DateTimeRange": Kind(
        pg.DateTimeRangeField,
        ranges(DateTimeTZRange, moments(FIRST, LAST)),
        [(UTC_MOMENT, None), DateTimeTZRange(empty=True)],
    ),
    "Array of IntegerRange": Kind(
        array(pg.IntegerRangeField),
        lists(ranges(NumericRange, st.integers(-9, 9))),
        [[NumericRange(1, 5), None]],
    ),
    "SearchVector": Kind(
        SearchVectorField,
        st.sampled_from(["'a':1 'b':2", "cat dog", "'it''s':3A"]),
    ),
    "timestamp": Kind(lambda **options: OfType("timestamp", **options), st.datetimes(FIRST, LAST)),
    "point": Kind(lambda **options: OfType("point", **options), st.sampled_from(["(1,2)", "(0.1,-3)"])),
    "bits": Kind(lambda **options: OfType("bit varying(8)", **options), st.text("01", max_size=8)),
    "char": Kind(lambda **options: OfType("char(9)", **options), st.text("ab ", max_size=9)),
    "money": Kind(lambda **options: OfType("numeric(9,2)", **options), decimals(9, 2)),
}

#: Those whose types the database has to be given first.
TYPES = {
    "CREATE EXTENSION hstore": "DROP EXTENSION hstore CASCADE",
    "CREATE EXTENSION citext": "DROP EXTENSION citext CASCADE",
    "CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'a \"b\"')": "DROP TYPE mood CASCADE",
    "CREATE DOMAIN short AS varchar(3)": "DROP DOMAIN short CASCADE",
}
MADE: dict[str, Kind] = {
    "hstore": Kind(
        pg.HStoreField,
        st.dictionaries(chars(9), st.none() | chars(9), max_size=3),
        [{}, {"a": None, "it's": "NULL", 'q"': 'a "b" \\ => c', "": ""}, {"n": 5}],
    ),
    "Array of hstore": Kind(
        array(pg.HStoreField),
        lists(st.dictionaries(chars(9), st.none() | chars(9), max_size=3)),
        [[{"a": None, "it's": 'a "b" \\'}, None]],
    ),
    "citext": Kind(lambda **options: OfType("citext", **options), chars(20), NASTY),
    "enum": Kind(lambda **options: OfType("mood", **options), st.sampled_from(["sad", "it's ok", 'a "b"'])),
    "domain": Kind(lambda **options: OfType("short", **options), chars(3)),
}


# Values that some database refuses, and save() with it


@dataclass(frozen=True)
class Bad:
    """A kind of field, values of which some are bad somewhere, and one that is good."""

    make: Callable[..., Any]
    good: Any
    values: Sequence[Any]


BAD: dict[str, Bad] = {
    "too long": Bad(
        lambda **options: models.CharField(max_length=5, **options), "short", ["longer", "x" * 99]
    ),
    "NUL": Bad(models.TextField, "x", ["a\0b"]),
    "half a character": Bad(models.TextField, "x", ["\ud800"]),
    "Integer": Bad(models.IntegerField, 1, [2**31, -(2**31) - 1, 2**63, 2**70, "one", 1.5, float("nan")]),
    "SmallInteger": Bad(models.SmallIntegerField, 1, [40_000, -40_000]),
    "PositiveInteger": Bad(models.PositiveIntegerField, 1, [-1, 2**32]),
    "Decimal": Bad(
        lambda **options: models.DecimalField(max_digits=5, decimal_places=2, **options),
        Decimal("1.5"),
        [Decimal("1234.5"), Decimal("NaN"), Decimal("Infinity"), "one", 12345.678],
    ),
    "Float": Bad(models.FloatField, 1.5, [float("nan"), float("inf"), "one"]),
    "Boolean": Bad(models.BooleanField, True, [5, "yes, please"]),
    "Date": Bad(models.DateField, dt.date(2026, 1, 1), ["2026-02-30", "soon", 7]),
    "DateTime": Bad(models.DateTimeField, UTC_MOMENT, ["2026-02-30 10:00Z", "soon", 7]),
    "Duration": Bad(models.DurationField, dt.timedelta(1), [dt.timedelta.max, dt.timedelta.min]),
    "JSON": Bad(models.JSONField, {}, [float("nan"), {"a": "\0"}, {"a": "\ud800"}, {"a": UTC_MOMENT}]),
    "UUID": Bad(models.UUIDField, uuid.UUID(int=1), ["one", 2**128]),
    "IP address": Bad(models.GenericIPAddressField, "::1", ["one", "::g", "1.2.3.4.5"]),
    "Binary": Bad(models.BinaryField, b"x", ["text", 7]),
}
BAD_ON_POSTGRESQL: dict[str, Bad] = {
    "bits": Bad(lambda **options: OfType("bit varying(8)", **options), "101", ["1" * 9, "2"]),
    "char": Bad(lambda **options: OfType("char(9)", **options), "x", ["x" * 10]),
    "number": Bad(lambda **options: OfType("numeric(5,2)", **options), Decimal("1.5"), [Decimal("1234.5")]),
    "Array of Text": Bad(array(models.TextField), ["short"], [["a\0b"], ["\ud800"]]),
    "Array of Array": Bad(array(array(models.TextField)), [["a"]], [[["a"], ["b", "c"]]]),
    "Array of Integer": Bad(array(models.IntegerField), [1], [[2**31], ["one"], 7]),
    "range": Bad(pg.IntegerRangeField, (1, 5), [(5, 1), (0, 2**40)]),
    "point": Bad(lambda **options: OfType("point", **options), "(1,2)", ["(1,"]),
}
BAD_OF_MADE: dict[str, Bad] = {
    "hstore": Bad(pg.HStoreField, {}, [{"a": "\0"}]),
    "enum": Bad(lambda **options: OfType("mood", **options), "sad", ["glad"]),
    "domain": Bad(lambda **options: OfType("short", **options), "abc", ["abcd"]),
}


# Primary keys

INTEGERS = st.integers(-99, 99) | integers(63)
TEXTS = chars(20) | st.sampled_from(
    [*NASTY, "a", "A", "a ", " a", "\u00e9", "e", "ss", "\u00df", "\U0001f600"]
)


@dataclass(frozen=True)
class Key:
    """A primary key: the fields that it takes, and values of them, row by row."""

    fields: Callable[[], list[tuple[str, Any]]]
    values: st.SearchStrategy[dict[str, Any]]


def simple(make: Callable[..., Any], values: st.SearchStrategy[Any]) -> Key:
    return Key(lambda: [("id", make(primary_key=True))], st.fixed_dictionaries({"id": values}))


def composite(**parts: tuple[Callable[..., Any], st.SearchStrategy[Any]]) -> Key:
    return Key(
        lambda: [
            ("pk", models.CompositePrimaryKey(*parts)),
            *((name, make()) for name, (make, _) in parts.items()),
        ],
        st.fixed_dictionaries({name: values for name, (_, values) in parts.items()}),
    )


def pointer(make: Callable[..., Any], to_field: str, values: Sequence[Any]) -> Key:
    def fields() -> list[tuple[str, Any]]:
        page = make(
            f"{APP}.page",
            models.CASCADE,
            to_field=to_field,
            primary_key=True,
            serialize=False,
            related_name="+",
        )
        return [("page", page)]

    return Key(fields, st.fixed_dictionaries({"page_id": st.sampled_from(values)}))


def name_field() -> Any:
    return models.CharField(max_length=30)


KEYS: dict[str, Key] = {
    "integer": simple(models.BigIntegerField, INTEGERS),
    "auto": simple(models.AutoField, st.integers(1, 2**31 - 1)),
    "small": simple(models.SmallIntegerField, integers(16)),
    "uuid": simple(models.UUIDField, uuids()),
    "text": simple(lambda **options: models.CharField(max_length=30, **options), TEXTS),
    "slug": simple(models.SlugField, TEXTS),
    "date": simple(models.DateField, st.dates()),
    "moment": simple(models.DateTimeField, moments(FIRST, LAST)),
    "decimal": simple(
        lambda **options: models.DecimalField(max_digits=12, decimal_places=3, **options), decimals(12, 3)
    ),
    "ip address": simple(models.GenericIPAddressField, st.ip_addresses().map(str)),
    "duration": simple(models.DurationField, st.timedeltas(dt.timedelta(-(10**5)), dt.timedelta(10**5))),
    "cents": simple(Cents, decimals(9, 2)),
    "integer and text": composite(number=(models.IntegerField, st.integers(-2, 2)), name=(name_field, TEXTS)),
    "uuid and integer": composite(
        code=(models.UUIDField, st.sampled_from(CODES[:3])), number=(models.BigIntegerField, INTEGERS)
    ),
    "text, date and integer": composite(
        name=(name_field, TEXTS),
        day=(models.DateField, st.dates(dt.date(2026, 1, 1), dt.date(2026, 1, 3))),
        number=(models.SmallIntegerField, st.integers(0, 2)),
    ),
    "OneToOne": pointer(models.OneToOneField, "id", NUMBERS),
    "OneToOne to a uuid": pointer(models.OneToOneField, "code", CODES),
    "OneToOne to a text": pointer(models.OneToOneField, "slug", SLUGS),
}
