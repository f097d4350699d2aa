"""The names that may stand in --populate, and how a migration says them."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import models
from django.db.models import functions
from django.utils import timezone

from safemigrate import populate as kinds


@dataclass(frozen=True)
class Known:
    """A name that may be typed: what it is, how the migration says it, and the import for that."""

    value: Any
    code: str
    line: str | None


def _exported(module: Any, path: str, names: Iterable[str]) -> dict[str, tuple[Known, ...]]:
    return {
        name: (Known(getattr(module, name), name, f"from {path} import {name}"),)
        for name in names
        if hasattr(module, name)
    }


# The first that has the attributes typed behind it is meant. `datetime` is the module or the class in it;
# both are written with `import datetime`, so that they never clash with what a field's default imports.
KNOWN: dict[str, tuple[Known, ...]] = {
    **{
        kind.__name__: (Known(kind, kind.__name__, None),)
        for kind in (bool, dict, float, int, list, str, tuple)
    },
    **_exported(models, "django.db.models", models.__all__),
    **_exported(functions, "django.db.models.functions", functions.__all__),
    **_exported(dt, "datetime", ("date", "time", "timedelta")),
    **_exported(decimal, "decimal", ("Decimal",)),
    **_exported(uuid, "uuid", ("UUID", "uuid1", "uuid4", "uuid7")),
    **_exported(kinds, "safemigrate.populate", ("FromRelated", "FromApps", "PerRow", "PerBatch", "Suffix")),
    "models": (Known(models, "models", "from django.db import models"),),
    "functions": (Known(functions, "functions", "from django.db.models import functions"),),
    "uuid": (Known(uuid, "uuid", "import uuid"),),
    "decimal": (Known(decimal, "decimal", "import decimal"),),
    "datetime": (
        Known(dt, "datetime", "import datetime"),
        Known(dt.datetime, "datetime.datetime", "import datetime"),
    ),
    "timezone": (
        Known(timezone, "timezone", "from django.utils import timezone"),
        Known(dt.timezone, "datetime.timezone", "import datetime"),
    ),
}
# Not a value by itself.
MODULES = (models, functions, uuid, decimal, dt, timezone)

# Evaluated when the migration is loaded, these give every row one value, and another one at each try.
PER_ROW = {
    getattr(uuid, name): f"uuid.{name}"
    for name in ("uuid1", "uuid4", "uuid6", "uuid7")
    if hasattr(uuid, name)
}
CLOCKS = {
    timezone.now: "Now()",
    timezone.localtime: "Now()",
    timezone.localdate: "TruncDate(Now())",
    dt.datetime.now: "Now()",
    dt.datetime.utcnow: "Now()",
    dt.datetime.today: "Now()",
    dt.date.today: "TruncDate(Now())",
}
# Around a function; what stands in them is no expression.
FUNCTION_KINDS = (kinds.FromApps, kinds.PerRow, kinds.PerBatch)
# What stands in these may be about another model.
OTHER_MODELS = (models.Subquery, models.Exists, *FUNCTION_KINDS)
