"""What a further rank of an engine runs first, before it imports vLLM: see `environment.ranks_of_their_own`."""

import gc

gc.set_threshold(100_000)  # nothing that an import makes is garbage; `plugin.register` sets the usual threshold again
