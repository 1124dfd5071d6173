"""A strict parser with helpful errors, and settings from a YAML file below those of the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from taco_llm.flag_table import nearest


class UsageError(Exception):
    """A command line that cannot be understood; exit status 2."""


class Formatter(argparse.HelpFormatter):
    """Help in two columns, with the option's value named once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """Takes `--a_b` for `--a-b`, no abbreviations, and names the nearest flag to one that does not exist."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", Formatter)
        options.setdefault("usage", options.get("prog", "") + " [options]")
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The command line, over the file of --config if there is such a flag. Raises UsageError."""
        words = [_dashes(word) for word in argv]
        given = self._given(words)
        if not given.get("config"):
            return self._parse_all(words)
        settings = self._parse_all(self._words_of_file(Path(given["config"]).expanduser()))
        for name, value in given.items():
            setattr(settings, name, value)
        return settings

    def _parse_all(self, words: list[str]) -> argparse.Namespace:
        namespace, extra = self.parse_known_args(words)
        self._refuse(extra)
        return namespace

    def _given(self, words: list[str]) -> dict[str, Any]:
        """Only what the words set, without defaults."""
        unset = object()
        blank = argparse.Namespace()
        for action in self._actions:
            # An appending action copies what is there; None is its empty list.
            appends = isinstance(action, argparse._AppendAction)
            setattr(blank, action.dest, None if appends else unset)
        namespace, extra = self.parse_known_args(words, blank)
        self._refuse(extra)
        positional = {action.dest for action in self._actions if not action.option_strings}
        appending = {action.dest for action in self._actions if isinstance(action, argparse._AppendAction)}
        return {
            name: value
            for name, value in vars(namespace).items()
            if value is not unset and not (value is None and name in positional | appending)
        }

    def _refuse(self, extra: Sequence[str]) -> None:
        if not extra:
            return
        word = extra[0].partition("=")[0]
        if word.startswith("-"):
            near = nearest(word, self._option_string_actions)
            raise UsageError(f"there is no flag {word}" + (f"; did you mean {near}?" if near else ""))
        raise UsageError(f"unexpected argument {word!r}")

    # --- --config

    def _words_of_file(self, path: Path) -> list[str]:
        """The file's settings as words of a command line."""
        import yaml

        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UsageError(f"--config {path}: {reason}") from None
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError) as error:
            raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
        if data is None:
            return []
        if not isinstance(data, Mapping):
            raise UsageError(f"--config {path} should have lines of the form `flag: value`")
        words: list[str] = []
        for key, value in data.items():
            words += self._words_of_setting(path, str(key), value)
        return words

    def _words_of_setting(self, path: Path, key: str, value: Any) -> list[str]:
        option = "--" + key.strip().lstrip("-").replace("_", "-")
        if option == "--config":
            raise UsageError(f"--config {path}: a file cannot name another config file")
        action = self._option_string_actions.get(option)
        if action is None:
            # vLLM's files may name the positional model.
            if option == "--model-tag" and "--model" in self._option_string_actions:
                return ["--model", str(value)]
            near = nearest(option, self._option_string_actions)
            hint = f"; did you mean {near.lstrip('-')}?" if near else ""
            raise UsageError(f"--config {path}: there is no setting {key!r}{hint}")
        if value is None:
            return []
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UsageError(f"--config {path}: {key} should be true or false, not {value!r}")
            return [option] if value else []
        if isinstance(action, argparse._AppendAction):
            many = value if isinstance(value, list) else [value]
            return [f"{option}={_word(one)}" for one in many]
        if isinstance(value, list) and action.nargs == "+":
            return [option, *(_word(one) for one in value)] if value else []
        if action.nargs == "+":
            return [option, _word(value)]
        if isinstance(value, Mapping) and action.metavar == "NAME=N,...":
            value = ",".join(f"{name}={count}" for name, count in value.items())
        return [f"{option}={_word(value)}"]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | Mapping):
        return json.dumps(value)
    return str(value)


def _dashes(word: str) -> str:
    """--max_model_len=5 as --max-model-len=5."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def warn(message: str) -> None:
    print(f"taco_llm: {message}", file=sys.stderr)
