"""Which LoRA adapters a model has, by the names that clients send: those of the configuration, and
the subfolders of the adapter folder as it is now.

Knows names and sources; whether an adapter can be used is found out when it is read.
"""

import re
import time
from pathlib import Path

from cluster.config import ConfigError, ModelConfig
from cluster.model_source import is_hub_id, resolve_adapter_source

CONFIG_FILE = "adapter_config.json"
# How long a listing of the folder is believed. A name that is not in it is looked for at once.
LISTING_LIFETIME_S = 1.0

_SUBFOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class AdapterCatalog:
    """The adapters of one model. A subfolder `sql` of the folder is the adapter `MODEL:sql`."""

    def __init__(self, config: ModelConfig) -> None:
        self._sources = {adapter.name: adapter.source for adapter in config.adapters}
        self._prefix = f"{config.name}:"
        folder = config.adapter_folder
        self._folder = None if folder is None else Path(folder).expanduser()
        self._listed: list[str] = []
        self._listed_at_s = float("-inf")
        self._resolved: dict[str, Path] = {}

    def names(self) -> list[str]:
        """All there are: first those of the configuration."""
        return [*self._sources, *(name for name in self._subfolders() if name not in self._sources)]

    def has(self, name: str) -> bool:
        """Whether there is such an adapter."""
        return name in self._sources or self._in_folder(name) is not None

    def hub_id(self, name: str) -> str | None:
        """Where it comes from, if that is a model hub and not a folder of ours."""
        source = self._sources.get(name)
        return source if source is not None and is_hub_id(source) else None

    def find(self, name: str) -> Path:
        """An adapter's folder on this machine; one of a hub is downloaded, once. May take long.

        Raises:
            ConfigError: it is not there; the message names no folder.
        """
        source = self._sources.get(name)
        if source is None:
            folder = self._in_folder(name)
            if folder is None:
                raise ConfigError("there is no such adapter any more")
            return folder
        if name not in self._resolved:
            self._resolved[name] = resolve_adapter_source(source)
        return self._resolved[name]

    def _in_folder(self, name: str) -> Path | None:
        subfolder = name.removeprefix(self._prefix)
        if self._folder is None or subfolder == name or not _SUBFOLDER.fullmatch(subfolder):
            return None
        folder = self._folder / subfolder
        return folder if (folder / CONFIG_FILE).is_file() else None

    def _subfolders(self) -> list[str]:
        now_s = time.monotonic()
        if self._folder is not None and now_s - self._listed_at_s > LISTING_LIFETIME_S:
            self._listed_at_s = now_s
            paths = self._folder.glob(f"*/{CONFIG_FILE}")
            subfolders = sorted(path.parent.name for path in paths)
            self._listed = [self._prefix + s for s in subfolders if _SUBFOLDER.fullmatch(s)]
        return self._listed
