"""What a class that scores is told beside vLLM's own configuration, and what of it vLLM's caches depend on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PoolerOptions:
    """Travels to every rank as vLLM's `additional_config`, which may be a dict or anything with `compute_hash`.

    vLLM names the artifacts that it compiles, and keeps from one start to the next, after a hash of its whole
    configuration. A dict would go into it as it is, and each k would be compiled anew; but rows are taken behind the compiled
    part, which is the same for all.
    """

    k: int
    """Entries kept per row."""

    def compute_hash(self) -> str:
        """The same for all options."""
        return "fusechat"
