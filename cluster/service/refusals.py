"""What a client is told whose request is not answered."""

RETRY_SECONDS = 1
"""What a refused client is told to wait."""


class Refusal(Exception):
    """A request that is not answered; carries what the client is told."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def for_now(status: int, message: str) -> Refusal:
    """A refusal of what may be answered later."""
    return Refusal(status, f"{message}; ask again later", **{"Retry-After": str(RETRY_SECONDS)})


def kind_of(status: int) -> str:
    """OpenAI's name of what is wrong."""
    return {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
