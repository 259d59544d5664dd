"""FuseChat fuses chat LLMs of any architecture, size and tokenizer into one of the pivot's size.

The pipeline: dialogues are tokenized for every model; each source LLM scores them and leaves top-k rows
(`inference/`); the rows are laid on the pivot's tokens and vocabulary (`alignment/`); the pivot is trained once
per source (`trainer/`); the targets are merged (`merge/`) and measured (`evaluation/`). `cluster/` runs the same
stages on Ray. This package is the shared core: configuration, contracts, storage, dialogues, the command line.
"""

__version__ = "0.1.0"
