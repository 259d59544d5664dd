"""Which token of the source stands for which of the pivot: by the bytes they spell, and counts of what meets."""
