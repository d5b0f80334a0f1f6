"""A short digest of everything that a stored vector depends on.

Vectors of the same revision may be searched together. The device and the precision are left out:
replicas on unlike machines serve one model, and their vectors agree to about 1e-4 in cosine. What
is put before a query is left out too: it changes no stored vector.

Of the weights' files the name, the size and slices all over the file are read, 4 MiB of each. A
training step changes nearly every weight, so another model does not pass for this one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.checkpoint import CheckpointError, read_json
from models.embedding.layout import DenseLayout, EmbeddingLayout

_NUM_SLICES = 256
_SLICE_BYTES = 16 * 2**10
_DIGEST_CHARS = 16
# Of config.json: says how it was made or how it is run, not what is computed.
_VOLATILE = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}
)


def revision_of(
    layout: EmbeddingLayout, *, tokenizer_json: str, passage_prefix: str, max_input_tokens: int
) -> str:
    """16 hexadecimal digits. `tokenizer_json`, `passage_prefix` and `max_input_tokens` as in force.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256()
    settings = {
        "poolings": layout.poolings,
        "head": [_settings_of(entry) for entry in layout.head],
        "passage_prefix": passage_prefix,
        "max_input_tokens": max_input_tokens,
        "config": _model_config(layout.encoder_folder),
    }
    digest.update(msgspec.json.encode(settings, order="deterministic"))
    digest.update(tokenizer_json.encode())
    for path in _weight_files(layout):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        _add_slices(digest, path)
    return digest.hexdigest()[:_DIGEST_CHARS]


def _settings_of(entry: object) -> object:
    if isinstance(entry, DenseLayout):
        return [entry.num_inputs, entry.num_outputs, entry.has_bias, entry.activation]
    return "normalize"


def _model_config(encoder_folder: Path) -> dict[str, object]:
    config = read_json(encoder_folder / "config.json")
    assert isinstance(config, dict), "the encoder has read it"
    return {name: value for name, value in config.items() if name not in _VOLATILE}


def _weight_files(layout: EmbeddingLayout) -> Sequence[Path]:
    files = sorted(layout.encoder_folder.glob("*.safetensors"))
    for entry in layout.head:
        if isinstance(entry, DenseLayout):
            files += sorted(entry.folder.glob("*.safetensors"))
    return files


def _add_slices(digest: "hashlib._Hash", path: Path) -> None:
    num_bytes = path.stat().st_size
    step = max(_SLICE_BYTES, num_bytes // _NUM_SLICES)
    try:
        with path.open("rb") as file:
            for start in range(0, num_bytes, step):
                file.seek(start)
                digest.update(file.read(_SLICE_BYTES))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
