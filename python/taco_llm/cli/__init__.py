"""The command line: `taco_llm COMMAND ...`."""
