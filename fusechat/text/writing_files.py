"""Names of the files in the artifact of written dialogues, for the stages on both sides of it."""

DIALOGUES_FILE = "dialogues.jsonl"
"""The dialogues that were kept, as dialogue files hold them."""
VERDICTS_FILE = "answers.jsonl"
"""A line per prompt: the prompt, and all its answers with their verdicts."""
