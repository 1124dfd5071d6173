"""`python -m taco_llm` is the command `taco_llm`."""

from taco_llm.cli.main import entry

entry()
