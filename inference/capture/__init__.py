"""From an engine step's hidden states to top-k rows: the pooler, the reductions on CPUs and GPUs, the packed rows."""
