"""From a `source` in the configuration to a folder with a checkpoint on this machine."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from cluster.config import ConfigError

DEMO_SOURCE = "demo"
_DEMO_FOLDER = Path(__file__).resolve().parent.parent / "models" / "demo" / "checkpoint"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WANTED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


def resolve_model_source(source: str) -> Path:
    """The checkpoint's folder: the model shipped inside for "demo", an existing folder as it is, a
    hub id ("Qwen/Qwen3-8B") downloaded once into the hub's own cache.

    Raises:
        ConfigError: it is none of these, or the download failed.
    """
    if source == DEMO_SOURCE:
        return _DEMO_FOLDER
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not _HUB_ID.fullmatch(source):
        raise ConfigError(
            f"source {source!r}: neither an existing folder, nor a hub id like 'Qwen/Qwen3-8B', "
            f"nor {DEMO_SOURCE!r}"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=list(_WANTED_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"source {source!r}: no such folder here, and the model hub did not give it: {reason}"
        ) from error
