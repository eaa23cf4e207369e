"""Settings as nested mappings: laid over one another, listed by dotted name. Imports no torch."""

from collections.abc import Collection, Mapping
from typing import Any

from poa.config.network import ModelSettings


def named(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A network may be given by its name alone."""
    model = settings.get("model")
    return {**settings, "model": {"name": model}} if isinstance(model, str) else settings


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay settings over others. Where another network is named, what was set about the first is left behind."""
    merged = dict(base)
    if names_another(base, over):
        merged.pop("model", None)
    for key, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if deeper else value
    return merged


def names_another(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether settings name another network than those that they are laid over."""
    old, new = base.get("model", {}), over.get("model", {})
    return isinstance(old, Mapping) and isinstance(new, Mapping) and new.get("name", _name(old)) != _name(old)


def _name(model: Mapping[str, Any]) -> Any:
    return model.get("name", ModelSettings.model_fields["name"].default)


def without(content: Mapping[str, Any], names: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Nested settings but those of some dotted names."""
    return {
        key: without(value, names, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in content.items()
        if f"{prefix}{key}" not in names
    }


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def nested(content: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, in their sections."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        section, _, key = name.rpartition(".")
        (found.setdefault(section, {}) if section else found)[key] = value
    return found
