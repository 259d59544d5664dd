"""Answers judged by another model over an OpenAI-compatible endpoint; verdicts are kept."""
