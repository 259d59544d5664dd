"""Which id of the pivot a source id becomes, and what the pieces of a vocabulary spell."""
