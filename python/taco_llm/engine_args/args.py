"""EngineArgs: the tables of this folder in one dataclass, its way from the command line, its checks."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from taco_llm import prefix_cache, speculation
from taco_llm.engine_args import scheduling
from taco_llm.engine_args.adapters import AdapterArgs
from taco_llm.engine_args.checks import check_ranges
from taco_llm.engine_args.memory import MemoryArgs
from taco_llm.engine_args.model import ModelArgs
from taco_llm.engine_args.own import OwnArgs
from taco_llm.engine_args.scheduling import SchedulingArgs
from taco_llm.engine_args.speculation import SpeculationArgs
from taco_llm.flag_table import NotBuiltError, add_flags, check_values, flag, notes, refusals

DTYPES = {"half": "float16", "float": "float32"}


# Fields come in the order of the tables from the last base to the first.
@dataclass
class EngineArgs(OwnArgs, SpeculationArgs, AdapterArgs, SchedulingArgs, MemoryArgs, ModelArgs):
    """The engine's settings; the names and defaults are vLLM 0.6.1's.

    Two differ: no model means the embedded default model, and chunked prefill is on unless it is turned off.
    """

    def __post_init__(self) -> None:
        if self.dtype is not None and not isinstance(self.dtype, str):
            self.dtype = str(self.dtype).removeprefix("torch.")  # a torch.dtype, as vLLM accepts
        if self.worker_use_ray and self.distributed_executor_backend is None:
            self.distributed_executor_backend = "ray"
        if self.max_context_len_to_capture is not None:
            self.max_seq_len_to_capture = self.max_context_len_to_capture

    @classmethod
    def add_cli_args(cls, parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds the table's flags to a parser."""
        add_flags(parser, cls)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> EngineArgs:
        """The settings of a parsed command line; attributes that are no engine flag are left alone."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})

    def check(self, device: str | None = None) -> None:
        """ValueError for a value that makes no sense; NotBuiltError (a NotImplementedError) for one that this
        version cannot honour. device: "cpu" or "cuda:N", once it is known what auto means."""
        check_values(self)
        self.dtype = DTYPES.get(self.dtype, self.dtype)
        check_ranges(self)
        if found := refusals(self, device or self.device):
            raise NotBuiltError("; also ".join(found))
        speculation.check(self)
        prefix_cache.check(self)

    def notes(self, device: str | None = None) -> list[str]:
        """A sentence for each setting that was given and changes nothing here. device: as for check."""
        return notes(self, device or self.device) + speculation.notes(self) + prefix_cache.notes(self)


@dataclass
class AsyncEngineArgs(EngineArgs):
    """EngineArgs and what concerns the logs of an asynchronous engine."""

    disable_log_requests: bool = flag(False, "Do not log requests.", scheduling.GROUP, kind="bool")
