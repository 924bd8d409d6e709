"""Finds policies and suites: built in, installed through an entry point, or named as `module:attribute`."""

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from replaybench.errors import ConfigError, unknown_name

# Extras of this package that bring what a built-in needs.
EXTRAS = {"transformers": "vla"}


def load_object(what: str, name: str, built_in: Mapping[str, str], group: str) -> Any:
    """Returns the object called `name`: built in, an entry point of `group`, or given as `module:attribute`."""
    targets = dict(built_in) | {point.name: point.value for point in importlib.metadata.entry_points(group=group)}
    target = targets.get(name, name)
    if ":" not in target:
        raise unknown_name(what, name, targets)
    module_name, attribute = target.split(":", 1)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        extra = EXTRAS.get(getattr(error, "name", None) or "")
        advice = f". Run `pip install 'replaybench[{extra}]'`." if extra else ""
        raise ConfigError(f"Cannot load {what} '{name}' from '{target}': {error}{advice}") from error


@contextmanager
def settings_of(what: str, name: str, factory: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """Within it `factory` is called with these settings; says which of them it does not take.

    Raises:
        ConfigError: Names the setting and the nearest one that there is, or what is missing.
    """
    parameters = inspect.signature(factory).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for setting in settings:
            if setting not in parameters:
                raise unknown_name(f"setting of {what} '{name}':", setting, parameters)
    try:
        yield
    except TypeError as error:
        raise ConfigError(
            f"{what.capitalize()} '{name}' does not take the settings {dict(settings)}: {error}"
        ) from error
