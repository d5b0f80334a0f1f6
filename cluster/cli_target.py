"""Which cluster a command talks to: its configuration, its address and the key for it."""

import os
from pathlib import Path

import orjson

from cluster.api_keys import KEY_FILE_NAME
from cluster.config import ConfigError, ShoalConfig, load_config, parse_config, shoal_home

# `ray_config/` lies beside `cluster/`, in a clone as in site-packages.
PACKAGED_CONFIG = Path(__file__).resolve().parent.parent / "ray_config" / "shoal.yaml"
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def find_config(given: Path | None) -> Path:
    """The file that `shoal up` takes: the given one, ./shoal.yaml, SHOAL_HOME's, the demo's.

    Raises:
        ConfigError: none of them is there.
    """
    if given is not None:
        return given
    candidates = (Path("shoal.yaml"), shoal_home() / "shoal.yaml", PACKAGED_CONFIG)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError("no configuration; looked for " + ", ".join(map(str, candidates)))


def deployed_file() -> Path:
    """Where the configuration that runs is written down."""
    return shoal_home() / "deployed.json"


def deployed_or_found_config() -> ShoalConfig:
    """The configuration that was started last in this SHOAL_HOME, else the one `up` would take.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        text = deployed_file().read_bytes()
    except FileNotFoundError:
        return load_config(find_config(None))
    try:
        raw = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{deployed_file()}: not JSON: {error}") from error
    return parse_config(raw, origin=str(deployed_file()))


def api_url(config: ShoalConfig) -> str:
    """Where a client on this machine reaches the API, without a trailing slash."""
    host = _ANY_ADDRESS.get(config.http.host, config.http.host)
    return f"http://{host}:{config.http.port}"


def api_key_file() -> Path:
    """The key that `shoal up` made, readable by its owner alone."""
    return shoal_home() / KEY_FILE_NAME


def read_api_key() -> str | None:
    """SHOAL_API_KEY, else the key `shoal up` made; None where there is neither."""
    key = os.environ.get("SHOAL_API_KEY")
    if key:
        return key
    try:
        return api_key_file().read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
