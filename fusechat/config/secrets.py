"""Secrets that must not stand in a run file: free-form fields and URLs in; a refusal that says where the secret belongs out.

A run file's values are kept in every artifact's plan, in run.json and in the report's page, and the cluster shows them.
Knows nothing about what the sections are. No message repeats the value.
"""

import re
from typing import Any
from urllib.parse import urlsplit

SECRET_KEYS = {
    "token",
    "hub_token",
    "hf_token",
    "push_to_hub_token",
    "use_auth_token",
    "auth_token",
    "api_key",
    "password",
}
"""Arguments of trl, transformers and vLLM that hold a secret, at whatever depth."""
HUB_KEY = re.compile(r"hub_|push_to_hub")
"""Arguments of trl that send checkpoints to the hub while it trains."""
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TOKEN_PLACE = (
    "a secret in a run file ends in plans, logs and pages; the hub's token is read from the environment variable HF_TOKEN, "
    "on a cluster from that of its nodes (cluster.env_vars: HF_TOKEN: ${HF_TOKEN})"
)


def refuse_secret_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The same values.

    Raises:
        ValueError: a key that holds a secret, at whatever depth.
    """
    for path in _paths(values):
        if path[-1] in SECRET_KEYS:
            raise ValueError(f"{'.'.join(path)} cannot be set: {TOKEN_PLACE}")
    return values


def refuse_hub_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The same values; ValueError for a key that would send something to the hub."""
    for key in values:
        if HUB_KEY.match(key):
            raise ValueError(
                f"{key} cannot be set: training sends nothing to the hub; `fusechat push` uploads a finished model, with the "
                "token in the environment variable HF_TOKEN"
            )
    return values


def refuse_url_secrets(url: str) -> None:
    """Raises ValueError for an endpoint's URL that holds more than scheme, host, port and path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url: expected the endpoint's base URL, such as https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "url: found credentials or a query in it, expected scheme, host and path; put the key into an environment "
            "variable and name that in key_variable"
        )


def refuse_key_as_variable(name: str, field: str = "key_variable", example: str = "JUDGE_KEY") -> None:
    """Raises ValueError for what cannot be the name of an environment variable, and may be the key itself."""
    if not VARIABLE_NAME.fullmatch(name):
        raise ValueError(
            f"{field}: found no name of an environment variable, expected one such as {example}; if it is the key "
            "itself, put it into such a variable"
        )


def _paths(values: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys."""
    if isinstance(values, list):
        return [place for value in values for place in _paths(value, path)]
    if not isinstance(values, dict):
        return []
    return [place for key, value in values.items() for place in ((*path, str(key)), *_paths(value, (*path, str(key))))]
