"""The OpenAI-compatible HTTP server. `taco_llm.server.app` has make_app and run."""
