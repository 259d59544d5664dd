"""Models write: prompts in, dialogues out.

Goes in: a prompts artifact and the models that write. Comes out: all their answers, an artifact per writer; and the dialogues
that a rule keeps of these, with the verdict on every answer. Knows nothing about who reads the dialogues.
"""
