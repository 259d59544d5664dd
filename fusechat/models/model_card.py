"""README.md of a model that FuseChat made: what the hub reads of it, and the text."""

from collections.abc import Sequence
from pathlib import Path


def card_text(body: str, *, tag: str, models: Sequence[str]) -> str:
    """The whole card.

    Args:
        body: Markdown.
        tag: what kind of model it is, beside `fusechat`.
        models: it was made from; those that are folders are no models of the hub, and left out.
    """
    from huggingface_hub import ModelCardData

    hub = [model for model in models if not Path(model).exists()]
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["fusechat", tag],
        base_model=hub[0] if len(hub) == 1 else hub or None,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
