"""What an accelerator is asked, in one command: `python -m benchmarks.gpu --minutes 8` (see `__main__.py`)."""
