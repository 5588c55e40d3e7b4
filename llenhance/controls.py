"""Strength, scale and the methods' own controls: whether what was asked for can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .errors import ControlError
from .methods import METHODS, Method


def check(
    method: Method,
    *,
    strength: float = 1.0,
    scale: int | None = None,
    return_map: bool = False,
    controls: Mapping[str, float] = MappingProxyType({}),
) -> tuple[int, dict[str, float]]:
    """(scale, every control of the method with its value); raises ControlError."""
    if not 0 <= strength <= 1:
        raise ControlError(f"strength {strength:g}: it goes from 0 to 1")
    if scale is None:
        scale = method.scales[0]
    elif scale not in method.scales:
        having = [m.name for m in METHODS.values() if scale in m.scales]
        raise ControlError(
            f"scale {scale}: {method.name} has scale {_listed(method.scales)};"
            f" {_listed(having) if having else 'no method'} has {scale}"
        )
    if return_map and not method.maps:
        having = [m.name for m in METHODS.values() if m.maps]
        raise ControlError(f"{method.name} has no map; {_listed(having)} has one")
    known = {control.name: control for control in method.controls}
    for name, value in controls.items():
        if name not in known:
            raise ControlError(lacking(name, method.name))
        control = known[name]
        if not control.low <= value <= control.high:
            raise ControlError(
                f"{name} {value:g}: it goes from {control.low:g} to {control.high:g}"
            )
    return int(scale), {c.name: float(controls.get(c.name, c.default)) for c in method.controls}


def lacking(control: str, *names: str) -> str:
    """The sentence for a control that these methods do not have."""
    having = [m.name for m in METHODS.values() if any(c.name == control for c in m.controls)]
    lacks = f"{_listed(names)} {'has' if len(names) == 1 else 'have'} no such control"
    return f"{control}: {lacks}; {_listed(having) + ' has it' if having else 'no method has it'}"


def _listed(values: Sequence[object]) -> str:
    return " and ".join(str(value) for value in values)
