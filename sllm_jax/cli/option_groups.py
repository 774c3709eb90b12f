"""Option groups: dataclasses whose fields are command line options, shared by several commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import update_wrapper
from inspect import Parameter
from typing import Any, get_type_hints


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of `command` by one option per field.

    Typer sees the options. `command` is called with dataclasses built from their values.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        single = parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        parameters += _options_of(groups[name]) if name in groups else [single]

    def run(**given: Any) -> None:
        made: dict[str, Any] = {}
        for name, group in groups.items():
            made[name] = group(**{one.name: given.pop(one.name) for one in fields(group)})
        command(**made, **given)

    update_wrapper(run, command)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    return run


def changed_options(*groups: Any) -> dict[str, Any]:
    """The options of these groups that differ from their defaults, by field name."""
    values = [(one, getattr(group, one.name)) for group in groups for one in fields(group)]
    return {one.name: value for one, value in values if value != one.default}


def _options_of(group: type) -> list[Parameter]:
    """One keyword parameter per field; fields without a default are required."""
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            one.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if one.default is MISSING else one.default,
            annotation=hints[one.name],
        )
        for one in fields(group)
    ]
