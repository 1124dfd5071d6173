"""`taco_llm COMMAND ...`: finds the command, runs it, and turns what goes wrong into one sentence.

Exit status: 0 done, 1 failed, 2 the command line was wrong, 130 interrupted.
TACO_LLM_DEBUG=1 shows tracebacks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from taco_llm.cli.parser import UsageError
from taco_llm.flag_table import NotBuiltError, nearest

# command -> (module with `run(argv) -> int`, what it does)
COMMANDS = {
    "serve": ("taco_llm.cli.serve", "offer a model over HTTP (OpenAI's API)"),
    "chat": ("taco_llm.cli.chat", "talk to a model in the terminal"),
    "complete": ("taco_llm.cli.complete", "complete text in the terminal"),
    "bench": ("taco_llm.cli.bench", "measure latency, throughput, or a running server"),
    "plan": ("taco_llm.cli.plan", "say where the memory of a model would go, without loading it"),
    "doctor": ("taco_llm.cli.doctor", "look at this machine and say what is missing"),
    "version": ("taco_llm.cli.version", "print the version"),
}


def usage() -> str:
    lines = [f"  {name:<10}{what}" for name, (_, what) in COMMANDS.items()]
    return (
        "usage: taco_llm COMMAND [options]\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\n`taco_llm COMMAND -h` lists the command's options."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        print(usage(), file=sys.stderr)
        return 2
    command, rest = words[0], words[1:]
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command in ("-v", "-V", "--version"):
        command = "version"
    debug = os.environ.get("TACO_LLM_DEBUG", "") not in ("", "0")
    if command not in COMMANDS:
        near = nearest(command, COMMANDS)
        hint = f"did you mean {near}?" if near else f"the commands are {', '.join(COMMANDS)}"
        print(f"taco_llm: there is no command {command!r}; {hint}", file=sys.stderr)
        return 2
    try:
        status = import_module(COMMANDS[command][0]).run(rest)
        sys.stdout.flush()
        return int(status)
    except UsageError as error:
        _complain(command, error)
        print(f"`taco_llm {command} -h` lists the options.", file=sys.stderr)
        return 2
    except NotBuiltError as error:
        if debug:
            raise
        _complain(command, error)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); leave quietly, and let nothing flush into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        _complain(command, error)
        return 1


def _complain(command: str, error: BaseException) -> None:
    text = str(error) if not isinstance(error, KeyError) else str(error.args[0] if error.args else error)
    sentence = " ".join(text.split())
    if not sentence:
        sentence = f"it failed with {type(error).__name__}; TACO_LLM_DEBUG=1 shows where"
    elif isinstance(error, (AttributeError, TypeError, AssertionError, IndexError, KeyError, NameError)):
        # Such an error is a fault of the program, not of its input: say so.
        sentence = f"internal error ({type(error).__name__}: {sentence}); TACO_LLM_DEBUG=1 shows where"
    print(f"taco_llm {command}: error: {sentence}", file=sys.stderr)


def entry() -> None:
    sys.exit(main())


if __name__ == "__main__":
    entry()
