"""One vLLM engine: its environment, its arguments, the thread that drives it, the model classes it is given."""
