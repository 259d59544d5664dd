"""What lies on disk or in an object store: contracts, artifacts, locks, the row store, tokens, damage, retry.

Knows nothing about models, dialogues or run files.
"""
