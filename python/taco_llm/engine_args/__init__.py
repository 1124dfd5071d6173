"""Every setting of the engine: vLLM 0.6.1's names and defaults, and taco_llm's own.

A setting is a field of a table: a keyword of `EngineArgs` and `LLM`, and a flag of the command line. Each
heading of `taco_llm serve --help` has its table in a file of its own (model, memory, scheduling, adapters,
speculation, own). `args.py` joins them; `checks.py` has the ranges of values.

What this version cannot do yet carries `needs=`: such a flag parses, and a value other than the default is
refused at start with a sentence that names it. What changes nothing here carries `note=`: a log line says so.
"""

from taco_llm.engine_args.args import AsyncEngineArgs, EngineArgs
from taco_llm.flag_table import NotBuiltError

__all__ = ["AsyncEngineArgs", "EngineArgs", "NotBuiltError"]
