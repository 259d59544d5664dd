"""`fusechat push`: a model folder to a model hub, only when told so twice: by the verb, and by its flag."""

import os
from pathlib import Path

from ..errors import ConfigError, ModelError

IGNORED = ["plan.json", "*.partial", "checkpoints/*", ".*"]


def push(folder: Path, repository: str, *, confirmed: bool, private: bool, token_variable: str) -> str:
    """Upload a model folder.

    Args:
        repository: `owner/name` on the hub.
        confirmed: without it nothing is sent, and the error says what would be.
        token_variable: environment variable that holds the hub's token.
    Returns:
        where it stands now.
    Raises:
        ModelError: the folder is no finished model.
        ConfigError: not confirmed, no token, or the hub refuses.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: found no config.json with safetensors; expected a model such as runs/quickstart/fused"
        )
    if not confirmed:
        files = _sent(folder)
        total = sum(path.stat().st_size for path in files) / 2**30
        raise ConfigError(
            f"nothing was sent: {len(files)} files of {folder}, {total:.2f} GiB, would go to {repository}; add --yes to send "
            "them"
        )
    token = os.environ.get(token_variable, "")
    if not token:
        raise ConfigError(f"the environment variable {token_variable} is not set; put the hub's token there")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    hub = HfApi(token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=IGNORED, commit_message=f"Upload {folder.name}"
        )
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{repository}: the hub did not take it: {reason}; check name, token and network") from None
    return str(done.commit_url)


def _sent(folder: Path) -> list[Path]:
    """The files that an upload would send, by the hub client's own rule."""
    from huggingface_hub.utils import filter_repo_objects

    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [folder / name for name in filter_repo_objects(names, ignore_patterns=IGNORED)]
