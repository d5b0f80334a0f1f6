"""Computes a chunk of a prompt some layers at a time, beside the steps of others."""

from collections.abc import Callable

from models.attention.backend import AttentionBackend
from models.decoder import Decoder, LayerPass
from models.engine.padding import padded_tokens
from models.engine.step_inputs import LayerInputs, StepInputs


class ChunkLayers:
    """Keeps what the layers so far have made of the latest chunk."""

    def __init__(
        self, decoder: Decoder, attention: AttentionBackend, *, padded: Callable[[int], int]
    ) -> None:
        """`padded`: the number of rows that so many tokens are padded to."""
        self._decoder = decoder
        self._attention = attention
        self._padded = padded
        self._tokens: LayerPass | None = None

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return len(self._decoder.layers)

    def compute(self, layers: LayerInputs) -> None:
        """Let the chunk pass some layers: there, its keys and values are written."""
        if layers.first_layer == 0:
            self._tokens = self._begin(layers.chunk)
        tokens = self._tokens
        assert tokens is not None, "a chunk begins before its first layer"
        assert tokens.num_layers == layers.first_layer, "and passes one after the other"
        self._decoder.advance(tokens, layers.stop_layer)
        if layers.stop_layer == self.num_layers:
            self._tokens = None

    def _begin(self, chunk: StepInputs) -> LayerPass:
        ids_T, positions_T = padded_tokens(chunk, self._padded(len(chunk.token_ids)))
        return self._decoder.begin(ids_T, positions_T, self._attention.prepare(chunk))
