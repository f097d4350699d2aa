"""A field whose class gives its model a second field, as those of money do."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.db import migrations, models
from django.db.models import F

from safemigrate.operations import AddNullableField, AddRequiredField, Populate, SetNotNull
from tests.support.sandbox import MigrationSandbox, question

pytestmark = pytest.mark.matrix


class CurrencyField(models.CharField):  # type: ignore[type-arg]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_length": 3, "default": "XYZ", **kwargs})

    def contribute_to_class(self, cls: Any, name: str, private_only: bool = False) -> None:
        if name not in [field.name for field in cls._meta.fields]:
            super().contribute_to_class(cls, name, private_only)


class PriceField(models.DecimalField):  # type: ignore[type-arg]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_digits": 10, "decimal_places": 2, **kwargs})

    def contribute_to_class(self, cls: Any, name: str, private_only: bool = False) -> None:
        currency = CurrencyField()
        currency.creation_counter = self.creation_counter - 1
        cls.add_to_class(f"{name}_currency", currency)
        super().contribute_to_class(cls, name, private_only)


POPULATES: dict[str, tuple[Any, Any]] = {
    "expressions": (F("cents") * Decimal("0.01"), "EUR"),
    "functions": (lambda row: Decimal(row.cents) / 100, lambda row: "EUR"),
}


def operations(kind: str, *, stepwise: bool) -> list[Any]:
    price, currency = POPULATES[kind]
    pairs = [("price", PriceField(), price), ("price_currency", CurrencyField(), currency)]
    if not stepwise:
        return [AddRequiredField("question", *pair) for pair in pairs]
    return [
        operation
        for name, field, populate in pairs
        for operation in (
            AddNullableField("question", name, field),
            Populate("question", name, populate),
            SetNotNull("question", name, field),
        )
    ]


@pytest.mark.parametrize("kind", POPULATES)
@pytest.mark.parametrize("stepwise", [False, True], ids=["one operation", "three"])
@pytest.mark.parametrize("rows", [0, 20])
def test_both_get_their_values_and_are_required(alias: str, kind: str, stepwise: bool, rows: int) -> None:
    sandbox = MigrationSandbox(alias, question(fields=[("cents", models.IntegerField())]))
    sandbox.fill(rows, cents=lambda n: 100 * n)
    before = sandbox.state
    made = operations(kind, stepwise=stepwise)
    for operation in made:
        sandbox.run(operation)
    assert sandbox.values("price") == [Decimal(n) for n in range(1, rows + 1)]
    assert sandbox.values("price_currency") == ["EUR"] * rows
    assert not sandbox.column("price").nullable
    assert not sandbox.column("price_currency").nullable
    if not stepwise:
        state = sandbox.after()
        del state.models["boxes", "question"].fields["price_currency"]
        state.reload_model("boxes", "question")
        sandbox.undo(made[1], before=state)
        sandbox.undo(made[0], before=before)
        assert sandbox.column("price") is None
        assert sandbox.column("price_currency") is None


def test_where_the_state_has_both_from_the_start(alias: str) -> None:
    fields = [("cents", models.IntegerField()), ("price", PriceField()), ("price_currency", CurrencyField())]
    sandbox = MigrationSandbox(alias, question(fields=fields))
    sandbox.fill(3, cents=1, price=Decimal(1), price_currency="EUR")
    sandbox.run(migrations.AddField("question", "note", models.CharField(max_length=5, default="")))
    sandbox.run(AddRequiredField("question", "other", PriceField(), F("price")))
    assert sandbox.column("other_currency") is None
    sandbox.run(AddRequiredField("question", "other_currency", CurrencyField(), F("price_currency")))
    assert sandbox.values("other_currency") == ["EUR"] * 3
