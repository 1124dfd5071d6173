"""`taco_llm plan [MODEL]`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from taco_llm.cli.parser import Parser
from taco_llm.cli.serve import add_model_tag, engine_args
from taco_llm.engine_args import AsyncEngineArgs


def make_parser() -> Parser:
    parser = Parser(
        prog="taco_llm plan",
        usage="taco_llm plan [MODEL] [options]",
        description="Says where a device's memory would go if a model were loaded with these settings: "
        "weights, a step, CUDA graphs, KV cache. Reads the model's configuration only. Exit status 1 if it "
        "does not fit.",
    )
    add_model_tag(parser)
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--device-memory-gb",
        type=float,
        metavar="GIB",
        help="Plan for a GPU of so much memory, whether or not there is one here.",
    )
    group.add_argument("--json", action="store_true", help="Print the plan as JSON, in bytes.")
    AsyncEngineArgs.add_cli_args(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    settings = make_parser().parse(argv)
    from taco_llm.plan import make

    plan = make(engine_args(settings), settings.device_memory_gb)
    print(json.dumps(plan.as_dict(), indent=2) if settings.json else "\n".join(plan.lines()))
    return 0
