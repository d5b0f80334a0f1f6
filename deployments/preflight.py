"""What can be wrong with a model and be found at once, without torch: checked before Ray starts.

The engine checks everything again, and more (names, shapes and types of the weights, memory).
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from cluster.config import ModelConfig
from cluster.model_source import resolve_model_source
from models.checkpoint import is_native, read_decoder_config
from models.quantization.scheme import choose_quantization
from models.tokenizer import Tokenizer


def check_model(config: ModelConfig) -> None:
    """
    Raises:
        ValueError: the source is not there, its config.json is wrong, its tokenizer is missing or
            broken, a file of weights is missing or truncated (the message names the file), or the
            checkpoint is stored quantized and another quantization is asked for; or the folder of
            adapters is missing.
            Whether transformers knows an architecture that is not ours is found out by the engine.
    """
    folder = resolve_model_source(config.source)
    if is_native(folder):
        stored = read_decoder_config(folder).quantization
        choose_quantization(config.quantization, stored)
    Tokenizer.from_folder(folder)
    # What adapters are like is found out when they are asked for; a folder is there from the start.
    if config.adapter_folder and not Path(config.adapter_folder).expanduser().is_dir():
        raise ValueError(f"adapter_folder: {config.adapter_folder} is no folder")
    if config.engine.synthetic_step_ms is None:
        _check_weights(folder)


def _check_weights(folder: Path) -> None:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}: no *.safetensors files")
    for path in paths:
        try:
            # Opening compares the header with the file's size.
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: damaged or not safetensors: {error}") from error
