"""Flags as data: a dataclass field carries its help, choices and whether it works yet.

The command line parser, the check that refuses what is not built, the log lines of flags without effect and
the documentation all come from the fields. A flag's name is the field's with dashes; its type is `kind`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Verdict = Callable[[Any], "str | None"]


class NotBuiltError(NotImplementedError):
    """A flag or argument that exists, asks for something that this version does not have, and says what."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """What a field knows about itself as a flag.

    kind: "str", "int", "float", "bool" (a switch), "maybe_bool" (a switch that takes an optional true/false),
    "json" (an object in JSON), "list" (a list in JSON) or "pairs" (image=2,video=1). choices: what is
    allowed. spellings: other ways to write a choice, accepted and translated. short: further option strings.
    many: takes one or more values. repeat: may be given several times. needs: what a value other than the
    default would need, when it is not built (a sentence's end after the flag's name), or a function of the
    value that returns it or None. note: likewise the log line of a value that is accepted and changes
    nothing. cpu_needs, cpu_note: the same, only where the model runs on the CPU. also: a pattern of values
    allowed beside the choices. group: the heading in the help.
    """

    help: str
    group: str
    kind: str = "str"
    choices: tuple[str | int, ...] | None = None
    also: str = ""
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    short: tuple[str, ...] = ()
    metavar: str | None = None
    many: bool = False
    repeat: bool = False
    needs: str | Verdict | None = None
    note: str | Verdict | None = None
    cpu_needs: str | Verdict | None = None
    cpu_note: str | Verdict | None = None

    def allows(self, value: Any) -> bool:
        """Whether the value is one of the choices, if there are any."""
        if not self.choices or value in self.choices:
            return True
        return bool(self.also) and isinstance(value, str) and re.fullmatch(self.also, value) is not None


def flag(default: Any, help: str, group: str, **options: Any) -> Any:
    """A dataclass field that is a flag. See Flag for the options."""
    metadata = {"flag": Flag(help=help, group=group, **options)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def option_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def flags_of(table: type) -> Iterable[tuple[dataclasses.Field[Any], Flag]]:
    """The fields of a dataclass that are flags, in order."""
    for field in dataclasses.fields(table):
        if "flag" in field.metadata:
            yield field, field.metadata["flag"]


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None


# --- values


def parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes", "on"):
        return True
    if lowered in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def parse_json_object(text: str) -> dict[str, Any] | None:
    if text.strip() in ("", "None", "null"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not JSON; write an object such as {{"type":"dynamic","factor":2.0}}'
        ) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is JSON, but not an object in braces")
    return value


def parse_pairs(text: str) -> dict[str, int] | None:
    pairs: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, equals, count = item.partition("=")
        if not equals or not count.strip().lstrip("-").isdigit():
            raise argparse.ArgumentTypeError(f"{item!r} is not of the form NAME=COUNT, such as image=2")
        pairs[key.strip().lower()] = int(count)
    return pairs or None


def parse_json_list(text: str) -> list[Any]:
    """A list in JSON, such as ["*"]; a single word is a list of one."""
    if not text.lstrip().startswith("["):
        return [text]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise argparse.ArgumentTypeError(f'{text!r} is not a list in JSON, such as ["*"]') from None
    return list(value)


def parse_str(text: str) -> str | None:
    return None if text in ("", "None") else text


_PARSERS: dict[str, Callable[[str], Any]] = {
    "str": parse_str,
    "int": int,
    "float": float,
    "json": parse_json_object,
    "pairs": parse_pairs,
    "list": parse_json_list,
}


def _named(parse: Callable[[str], Any], kind: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            wanted = {"int": "a whole number", "float": "a number"}[kind]
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None

    return convert if kind in ("int", "float") else parse


def _choice(parse: Callable[[str], Any], spec: Flag) -> Callable[[str], Any]:
    """Checks choices while converting, so that other spellings are translated and the nearest is named."""
    choices = spec.choices or ()

    def convert(text: str) -> Any:
        value = parse(spec.spellings.get(text, text))
        if value is None or spec.allows(value):
            return value
        names = [str(choice) for choice in choices]
        near = difflib.get_close_matches(str(value), names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}{hint}")

    return convert


def add_flags(parser: argparse.ArgumentParser, table: type, *, skip: Sequence[str] = ()) -> None:
    """Adds the table's flags to the parser, one group of the help for each heading."""
    groups = {group.title: group for group in parser._action_groups}
    for field, spec in flags_of(table):
        if field.name in skip:
            continue
        group = groups.get(spec.group)
        if group is None:
            group = groups[spec.group] = parser.add_argument_group(spec.group)
        default = default_of(field)
        names = [option_name(field.name), *spec.short]
        text = help_text(field, spec)
        if spec.kind == "bool":
            group.add_argument(*names, dest=field.name, action="store_true", default=default, help=text)
            continue
        if spec.kind == "maybe_bool":
            group.add_argument(
                *names, dest=field.name, nargs="?", const=True, type=parse_bool, default=default,
                metavar="BOOL", help=text,
            )  # fmt: skip
            continue
        convert = _named(_PARSERS[spec.kind], spec.kind)
        metavar = spec.metavar
        if spec.choices:
            convert = _choice(convert, spec)
            metavar = metavar or "{" + ",".join(str(choice) for choice in spec.choices) + "}"
        metavar = metavar or {"int": "N", "float": "X", "json": "JSON", "pairs": "NAME=N,..."}.get(
            spec.kind, "TEXT"
        )
        options: dict[str, Any] = {"type": convert, "default": default, "metavar": metavar, "help": text}
        if spec.many:
            options["nargs"] = "+"
        if spec.repeat:
            options["action"] = "append"
        group.add_argument(*names, dest=field.name, **options)


def help_text(field: dataclasses.Field[Any], spec: Flag) -> str:
    """The flag's help: what it does, its default, and whether it is built."""
    text = spec.help
    if spec.choices and spec.metavar:
        text += f" One of {', '.join(map(str, spec.choices))}."
    default = default_of(field)
    if spec.kind not in ("bool",) and default not in (None, [], ""):
        text += f" Default: {default}."
    if isinstance(spec.needs, str):
        text += " Not built yet."
    elif isinstance(spec.note, str):
        text += " Accepted without effect."
    return text.replace("%", "%%")


# --- checks


def _verdict(rule: str | Verdict | None, value: Any) -> str | None:
    if rule is None or isinstance(rule, str):
        return rule
    return rule(value)


def check_values(settings: Any) -> None:
    """ValueError for a value outside its flag's choices; translates other spellings in place.

    For values that came from Python rather than from the command line."""
    for field, spec in flags_of(type(settings)):
        value = getattr(settings, field.name)
        if isinstance(value, str) and value in spec.spellings:
            value = spec.spellings[value]
            setattr(settings, field.name, value)
        if value is None or value == default_of(field):
            continue
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            if spec.choices and not spec.allows(one):
                near = difflib.get_close_matches(str(one), [str(choice) for choice in spec.choices], 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"{field.name}={one!r} is not one of {', '.join(map(str, spec.choices))}{hint}"
                )
            wanted = _TYPES[spec.kind]
            if not isinstance(one, wanted) or (isinstance(one, bool) and spec.kind in ("int", "float")):
                raise ValueError(f"{field.name}={one!r} should be {_KIND_NAMES[spec.kind]}")


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "maybe_bool": (bool,),
    "json": (Mapping,),
    "pairs": (Mapping,),
    "list": (str,),  # of the items
    "str": (str,),
}
_KIND_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "maybe_bool": "True, False or None",
    "json": "a dict",
    "pairs": "a dict of counts",
    "list": "a list",
    "str": "a string",
}


def refusals(settings: Any, device: str = "") -> list[str]:
    """One sentence for each setting that asks for something that is not built, or not for this device."""
    return [
        f"{shown(field.name, value, spec)} {reason}"
        for field, spec, value in _given(settings)
        if (reason := _verdict(spec.needs, value) or (device == "cpu" and _verdict(spec.cpu_needs, value)))
    ]


def notes(settings: Any, device: str = "") -> list[str]:
    """One sentence for each setting that was given and changes nothing, here or on this device."""
    return [
        f"{shown(field.name, value, spec)}: {reason}"
        for field, spec, value in _given(settings)
        if (reason := _verdict(spec.note, value) or (device == "cpu" and _verdict(spec.cpu_note, value)))
    ]


def _given(settings: Any) -> Iterable[tuple[dataclasses.Field[Any], Flag, Any]]:
    """The flags whose value is not the default."""
    for field, spec in flags_of(type(settings)):
        value = getattr(settings, field.name)
        if value != default_of(field):
            yield field, spec, value


def flags_given(settings: Any, names: Sequence[str]) -> list[str]:
    """Those of the flags' names whose value is not the default."""
    changed = {field.name for field, _, _ in _given(settings)}
    return [name for name in names if name in changed]


def shown(name: str, value: Any, spec: Flag) -> str:
    """The flag as one would type it."""
    if value is True:
        return option_name(name)
    if isinstance(value, Mapping):
        value = json.dumps(value) if spec.kind == "json" else ",".join(f"{k}={v}" for k, v in value.items())
    elif isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return f"{option_name(name)} {value}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, if any is."""
    found = difflib.get_close_matches(name, list(known), 1, 0.6)
    return found[0] if found else None
