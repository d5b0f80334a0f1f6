"""The computation of steps on a GPU: inputs go there in one copy, decode steps are replayed graphs.

Shapes: T = rows of the step, M = model width, V = vocabulary.
"""

import torch

from models.adapters.bank import AdapterStep
from models.attention.step_tensors import StepTensors, num_decodes, send_step
from models.attention.triton import TritonAttention
from models.engine.cuda_graphs import ComputedStep, DecodeGraphs, Recorder, graph_sizes
from models.engine.step_decoder import StepDecoder
from models.engine.step_inputs import StepInputs

MAX_GRAPH_SIZE = 512  # sequences; larger steps are launched kernel by kernel


class GPUSteps:
    """One model and its cache on one device."""

    def __init__(
        self,
        model: StepDecoder,
        attention: TritonAttention,
        *,
        max_num_seqs: int,
        device: torch.device,
        recorder: Recorder | None,
    ) -> None:
        """Compiles what the steps need, and captures decode steps where there is a recorder."""
        self._model = model
        self._attention = attention
        self._device = device
        self._graphs: DecodeGraphs | None = None
        sizes = graph_sizes(max_num_seqs, MAX_GRAPH_SIZE)
        with torch.inference_mode():
            self._compile(sizes)
            if recorder is not None:
                self._graphs = DecodeGraphs(
                    self._compute_with_logits, recorder, sizes=sizes, device=device
                )

    def compute(
        self,
        inputs: StepInputs,
        adapters: AdapterStep | None = None,
        token_ids_T: torch.Tensor | None = None,
    ) -> ComputedStep:
        """The rows are those of the inputs, and perhaps padding. What it gives may be overwritten
        by the next step. `token_ids_T`: on the device, instead of the inputs' own."""
        num_tokens = num_rows = len(inputs.token_ids)
        size = None
        graphs = self._graphs if adapters is None else None
        if graphs is not None and num_decodes(inputs) == num_tokens:
            size = graphs.size_for(num_tokens)
            num_rows = size or num_tokens
        tables = self._attention.tables
        step = send_step(inputs, tables, num_rows=num_rows, device=self._device)
        if token_ids_T is not None:
            step.token_ids_T[:num_tokens].copy_(token_ids_T)
        if graphs is not None and size is not None:
            return graphs.run(step)
        return ComputedStep(hidden_TM=self._forward(step, adapters), logits_TV=None)

    def _compute_with_logits(self, step: StepTensors) -> ComputedStep:
        hidden_TM = self._forward(step)
        return ComputedStep(hidden_TM=hidden_TM, logits_TV=self._model.logits(hidden_TM))

    def _forward(self, step: StepTensors, adapters: AdapterStep | None = None) -> torch.Tensor:
        attention = self._attention.over(step)
        return self._model.forward(step.token_ids_T, step.positions_T, attention, adapters)

    def _compile(self, sizes: list[int]) -> None:
        """Run steps of nothing but padding, so that no request waits for the compiler: of decoding
        sequences for every number of splits, and of a chunk."""
        by_splits = {self._attention.num_splits(size): size for size in reversed(sizes)}
        for size in by_splits.values():
            fields = StepTensors.padding(size, device=self._device)
            self._forward(StepTensors.of_decodes(fields, num_sequences=size))
        self._forward(_padding_chunk(self._device))


def _padding_chunk(device: torch.device) -> StepTensors:
    """Two tokens of a sequence whose keys and values are not stored."""
    fields = StepTensors.padding(2, device=device)
    ids_T, positions_T, slots_T, _ = fields.view(4, 2)
    return StepTensors(
        num_decodes=0,
        num_tokens=2,
        decode_fields=fields,
        token_ids_T=ids_T,
        positions_T=positions_T,
        slots_T=slots_T,
        context_lens_S=torch.full((1,), 2, dtype=torch.int32, device=device),
        query_starts_P=torch.tensor([0, 2], dtype=torch.int32, device=device),
        logit_indices_R=ids_T[:0],
    )
