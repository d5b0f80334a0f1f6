"""Computes a chunk of a prompt some layers at a time, beside the steps of others."""

from models.decoder import Decoder, DecoderInputs, LayerPass
from models.engine.step_inputs import LayerInputs


class ChunkLayers:
    """Keeps what the layers so far have made of the latest chunk."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._tokens: LayerPass | None = None

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return len(self._decoder.layers)

    def begin(self, inputs: DecoderInputs) -> None:
        """Take a chunk that has passed no layer."""
        self._tokens = self._decoder.begin(*inputs)

    def compute(self, layers: LayerInputs) -> None:
        """Let the chunk pass some layers: there, its keys and values are written."""
        tokens = self._tokens
        assert tokens is not None, "a chunk begins before its first layer"
        assert tokens.num_layers == layers.first_layer, "and passes one after the other"
        self._decoder.advance(tokens, layers.stop_layer)
        if layers.stop_layer == self.num_layers:
            self._tokens = None
