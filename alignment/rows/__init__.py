"""From a source's rows to rows on the pivot's tokens: chain rule or plain map, shard by shard, in compiled loops."""
