"""From polls.Question.expires_date to the model and its field, or to the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.apps import AppConfig, apps
from django.core.exceptions import FieldDoesNotExist
from django.db import models

from safemigrate.exceptions import InvalidField
from safemigrate.formatting import nearest
from safemigrate.schema import fields


@dataclass(frozen=True)
class RequiredField:
    """A field that is to be added and filled."""

    model: type[models.Model]
    field: models.Field[Any, Any]

    @property
    def app_label(self) -> str:
        return str(self.model._meta.app_label)

    @property
    def model_name(self) -> str:
        return str(self.model._meta.model_name)

    @property
    def name(self) -> str:
        return str(self.field.name)

    @property
    def label(self) -> str:
        return f"{self.model._meta.label}.{self.name}"


def find_all(labels: Sequence[str]) -> list[RequiredField]:
    """Return the targets of the labels, each once, in their order."""
    return list(dict.fromkeys(find(label) for label in labels))


def find(label: str) -> RequiredField:
    """Return the target that `label` names.

    Raises InvalidField when it names nothing, or something that cannot be added and made required.
    """
    model, name = model_and_name(label)
    target = RequiredField(model, _field(model, name))
    _check_model(target)
    _check_field(target)
    return target


def model_and_name(label: str) -> tuple[type[models.Model], str]:
    """Return the model that `label` names, and the name of its field, which need not be there."""
    parts = label.split(".")
    if len(parts) != 3 or not all(part.isidentifier() for part in parts):
        raise InvalidField(
            f"{label!r} is not of the form app.Model.field, as in polls.Question.expires_date."
        )
    return _model(parts[0], parts[1]), parts[2]


def _model(app_label: str, name: str) -> type[models.Model]:
    configs = {config.label: config for config in apps.get_app_configs()}
    if app_label not in configs:
        named = [config.label for config in configs.values() if config.name.rpartition(".")[2] == app_label]
        if named:
            raise InvalidField(
                f"{app_label} is the app's module. Its label is {named[0]}: name {named[0]}.{name}."
            )
        hint = nearest(app_label, configs) or " Is it in INSTALLED_APPS?"
        raise InvalidField(f"There is no app {app_label}.{hint}")
    found = {model.__name__: model for model in configs[app_label].get_models(include_swapped=True)}
    lowered = {key.lower(): model for key, model in found.items()}
    if name.lower() not in lowered:
        _refuse_abstract(configs[app_label], name)
        raise InvalidField(f"The app {app_label} has no model {name}.{nearest(name, found)}")
    return lowered[name.lower()]


def _refuse_abstract(config: AppConfig, name: str) -> None:
    known = {key.lower(): value for key, value in vars(config.models_module or config).items()}
    model = known.get(name.lower())
    if not (isinstance(model, type) and issubclass(model, models.Model) and model._meta.abstract):
        return
    heirs = [
        each._meta.label for each in apps.get_models() if issubclass(each, model) and not each._meta.proxy
    ]
    labels = ", ".join(heirs) or "none so far"
    raise InvalidField(
        f"{config.label}.{model.__name__} is abstract, so it has no table. Its fields are in the tables of the models "
        f"that inherit from it ({labels}): name these, each with the field."
    )


def _field(model: type[models.Model], name: str) -> Any:
    try:
        return model._meta.get_field(name)
    except FieldDoesNotExist:
        known = [field.name for field in (*model._meta.fields, *model._meta.many_to_many)]
        hint = nearest(name, known) or " Add it to the model first; the command reads it from there."
        raise InvalidField(f"{model._meta.label} has no field {name}.{hint}") from None


def _check_model(target: RequiredField) -> None:
    options = target.model._meta
    if options.proxy:
        concrete = options.concrete_model._meta.label  # type: ignore[union-attr]
        raise InvalidField(
            f"{options.label} is a proxy without a table: name {concrete}.{target.name} instead."
        )
    if options.swapped:
        raise InvalidField(
            f"{options.label} is swapped for {options.swapped}, so it has no table: name "
            f"{options.swapped}.{target.name} instead."
        )
    if not options.managed:
        raise InvalidField(
            f"{options.label} is unmanaged (managed = False): migrations do not touch its table, "
            "so the column has to be added where the table is made."
        )


def _check_field(target: RequiredField) -> None:
    field = target.field
    options = target.model._meta
    own: Any = field
    if hasattr(own, "ct_field") and hasattr(own, "fk_field"):
        raise InvalidField(
            f"{target.label} is a {type(own).__name__}, which has no column of its own: name its two columns, "
            f"{options.label}.{own.ct_field} and {options.label}.{own.fk_field}."
        )
    if not isinstance(field, models.Field) or not (field.concrete or field.many_to_many):
        raise InvalidField(f"{target.label} has no column of its own, so there is nothing to fill.")
    if field not in (*options.local_fields, *options.local_many_to_many):
        parent = field.model._meta.label
        raise InvalidField(
            f"{target.label} is inherited, and its column is in the table of {parent}: "
            f"name {parent}.{target.name} instead."
        )
    try:
        fields.check(field, target.label)
    except InvalidField as error:
        raise InvalidField(f"{error}\nRun: python manage.py makemigrations {target.app_label}") from error
