"""One rank's computation: a checkpoint on a device, and `execute`, which runs one step of it.

Where several ranks share the model, rank 0 executes and chooses the tokens, and the others assist.

Shapes: T = tokens in the step, R = rows that are sampled, N = prompt positions scored at once,
M = model width, V = vocabulary.
"""

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from cluster.config import EngineConfig
from cluster.types import TokenLogprobs
from models.adapters.bank import AdapterBank, AdapterStep, adapter_bank
from models.adapters.checkpoint import LayerPairs, LoadedAdapter, read_adapter
from models.attention.choice import choose_attention
from models.checkpoint import DecoderConfig, DecoderShape, is_native, read_decoder_config
from models.decoder import Decoder, DecoderInputs
from models.engine.beam_candidates import candidates_by_row
from models.engine.chunk_layers import ChunkLayers
from models.engine.cuda_graphs import ComputedStep
from models.engine.determinism import check_deterministic
from models.engine.devices import (
    choose_dtype,
    find_device,
    make_recorder,
    make_sampler,
    overlaps_steps,
    runs_triton,
    set_threads,
)
from models.engine.kv_cache import (
    KVCache,
    KVCachePlan,
    context_limit,
    kv_cache_dtype,
    kv_cache_memory_bytes,
    plan_kv_cache,
)
from models.engine.launched_step import (
    LaunchedStep,
    can_draw,
    drawn_outputs,
    following_inputs,
)
from models.engine.padding import padded_size, padded_tokens
from models.engine.sampler import NonFiniteLogitsError, token_logprobs
from models.engine.step_decoder import StepDecoder
from models.engine.step_inputs import PromptLogprobsRow, StepInputs, StepOutputs
from models.engine.step_interrupt import InterruptibleAttention, StepInterrupt
from models.engine.transfers import upload
from models.layers import can_pack
from models.native.matmul import (
    are_float_products_fast,
    can_multiply_floats,
    native_float_product,
)
from models.native.operations import native_operations
from models.operations import DecoderOperations
from models.parallel.group import TPGroup
from models.parallel.sharding import Shards
from models.parallel.step_order import StepOrder
from models.quantization.scheme import choose_quantization
from models.weights import init_random_weights, load_weights

if TYPE_CHECKING:
    from models.engine.gpu_steps import GPUSteps

# Logits of a long prompt are made in parts of this many numbers: 64 MiB in float32.
MAX_PROMPT_LOGITS = 2**24

# Ranks wait so long for the one that loads its weights last.
LOADING_TIMEOUT_S = 3600.0


class ModelRunner:
    """Satisfies `Runner`. Everything is allocated at construction; `execute` only computes."""

    def __init__(
        self,
        checkpoint_dir: Path,
        engine_config: EngineConfig,
        *,
        dtype: str = "auto",
        device: str = "auto",
        quantization: str = "auto",
        random_weights: bool = False,
        group: TPGroup | None = None,
    ) -> None:
        """Load the checkpoint, or this rank's part of it, and allocate the KV cache.

        Args:
            dtype: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16".
            device: "auto" (a GPU where there is one), "cpu" or "cuda".
            quantization: one of `QUANTIZATION_NAMES`; "auto" is as the checkpoint is stored.
            random_weights: make the weights up instead of reading them, to measure speed.
            group: the ranks that share the model, each constructed alike; None: this is the only
                one.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            ValueError: the configuration cannot be met: an unknown dtype, no such device, too
                little memory, a context limit beyond the checkpoint's, a model that so many ranks
                cannot share.
            GroupError: another rank did not get so far.
        """
        group = group or TPGroup()
        began_s = time.perf_counter()
        set_threads(engine_config.num_threads, group.size)
        self._device = find_device(device, group.device_index)
        self._bank: AdapterBank | None = None
        self._padded: Callable[[int], int] = padded_size
        if is_native(checkpoint_dir):
            config = read_decoder_config(checkpoint_dir)
            chosen = choose_quantization(
                quantization, config.quantization, is_invariant=engine_config.deterministic
            )
            config = replace(config, quantization=chosen)
            self._quantization = None if chosen is None else chosen.name
            self._dtype = choose_dtype(dtype, config.dtype)
            self._decoder: StepDecoder = self._native_decoder(
                checkpoint_dir, config, engine_config, group=group, random_weights=random_weights
            )
            shape: DecoderShape = config
            shards = Shards(config, rank=group.rank, size=group.size)
            shape_of_rank: DecoderShape = shards.config
            self._all_shards = [
                Shards(config, rank=rank, size=group.size) for rank in range(group.size)
            ]
            padded = int if runs_triton(self._device) else padded_size
            self._bank = adapter_bank(shards, engine_config, self._dtype, str(self._device), padded)
        else:
            if group.size > 1 or random_weights or quantization not in ("auto", "none"):
                raise _foreign(checkpoint_dir, "neither shared by ranks nor quantized nor made up")
            if engine_config.max_loaded_adapters or engine_config.deterministic:
                raise _foreign(checkpoint_dir, "neither deterministic nor used with adapters")
            self._quantization = None
            foreign = importlib.import_module("models.transformers_decoder")
            self._dtype = choose_dtype(dtype, foreign.read_dtype(checkpoint_dir))
            self._decoder = decoder = foreign.TransformersDecoder(
                checkpoint_dir,
                dtype=self._dtype,
                device=str(self._device),
                max_model_len=engine_config.max_model_len,
            )
            shape = shape_of_rank = decoder.shape
        loaded_s = time.perf_counter()
        memory_bytes = kv_cache_memory_bytes(engine_config, self._device, num_ranks=group.size)
        cache_dtype = kv_cache_dtype(engine_config, self._dtype)
        self._plan = plan_kv_cache(
            shape_of_rank,
            engine_config,
            dtype=cache_dtype,
            memory_bytes=group.minimum(memory_bytes, timeout_s=LOADING_TIMEOUT_S),
        )
        self._kv_cache = KVCache.allocate(
            self._plan, shape_of_rank, dtype=cache_dtype, device=self._device
        )
        self.start_seconds = {
            "weights": loaded_s - began_s,
            "kv_cache": time.perf_counter() - loaded_s,
        }
        self._prepare_steps(shape_of_rank, engine_config, group)
        self._sampler, self._shape = make_sampler(self._device), shape
        self._interrupt = StepInterrupt()
        self._overlaps_steps = overlaps_steps(engine_config, self._device, group.size)

    def _prepare_steps(
        self, shape: DecoderShape, engine_config: EngineConfig, group: TPGroup
    ) -> None:
        """What computes attention: on a GPU a part of its steps as a whole."""
        self._gpu_steps: GPUSteps | None = None
        self._chunk_layers: ChunkLayers | None = None
        if runs_triton(self._device):
            self._gpu_steps = self._make_gpu_steps(shape, engine_config, group)
            return
        self._attention = choose_attention(
            self._kv_cache, shape, dtype=self._dtype, is_deterministic=engine_config.deterministic
        )
        if isinstance(self._decoder, Decoder) and self._device.type == "cpu":
            self._chunk_layers = ChunkLayers(self._decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def plan(self) -> KVCachePlan:
        return self._plan

    @property
    def num_blocks(self) -> int:
        return self._plan.num_blocks

    @property
    def block_size(self) -> int:
        return self._plan.block_size

    @property
    def max_model_len(self) -> int:
        return self._plan.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._shape.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset(self._shape.eos_token_ids)

    @property
    def default_max_num_batched_tokens(self) -> int:
        """A step should not last much longer than people wait between two tokens."""
        return 512 if self._device.type == "cpu" else 2048

    @property
    def min_prompt_tokens(self) -> int:
        """A GPU multiplies some hundred tokens by the weights while it reads them."""
        return 16 if self._device.type == "cpu" else 256

    @property
    def num_layers_apart(self) -> int:
        return 0 if self._chunk_layers is None else self._chunk_layers.num_layers

    def describe(self) -> str:
        dtype = str(self._dtype).removeprefix("torch.")
        if self._quantization is not None:
            dtype = f"{self._quantization} and {dtype}"
        where = self._device.type
        if where == "cpu":
            where = f"cpu ({torch.get_num_threads()} threads)"
        adapters = "" if self._bank is None else f"; {self._bank.describe()}"
        return (
            f"{self._shape.architecture} in {dtype} on {where}; {self._plan.describe()}{adapters}"
        )

    @property
    def num_adapter_slots(self) -> int:
        """See `AdapterHost`, as for the next two."""
        return 0 if self._bank is None else self._bank.num_slots

    def read_adapter(self, folder: Path) -> LoadedAdapter:
        assert self._bank is not None, "without slots nothing is read"
        assert isinstance(self._shape, DecoderConfig), "slots are beside our own decoder"
        return read_adapter(folder, self._shape, max_rank=self._bank.rank, dtype=self._dtype)

    def adapter_parts(self, pairs: LayerPairs) -> list[LayerPairs]:
        """What each tensor-parallel rank needs of a layer's pairs."""
        return [
            {module: pair.part(module, shards) for module, pair in pairs.items()}
            for shards in self._all_shards
        ]

    def install_adapter(self, slot: int, adapter: LoadedAdapter, layer_index: int) -> None:
        self.install_pairs(slot, layer_index, adapter.layers[layer_index])

    def install_pairs(self, slot: int, layer_index: int, pairs: LayerPairs) -> None:
        """Put a layer of an adapter, this rank's part of it, into a slot."""
        assert self._bank is not None, "without slots nothing is installed"
        self._bank.install(slot, layer_index, pairs)

    def execute(self, inputs: StepInputs) -> StepOutputs:
        """Compute one step: copy blocks, write its keys and values, choose its tokens.

        A row whose logits are not finite is named in `failed_rows`; the others are not affected.

        Raises:
            StepInterrupted: see `Runner`.
        """
        return self.launch(inputs).result()

    @property
    def overlaps_steps(self) -> bool:
        return self._overlaps_steps

    def continue_step(self, launched: LaunchedStep) -> LaunchedStep:
        """See `LaunchingRunner`, as for `launch`."""
        following = following_inputs(launched.inputs, self.block_size)
        return self.launch(following, launched.keep())

    def launch(self, inputs: StepInputs, token_ids_T: torch.Tensor | None = None) -> LaunchedStep:
        """`token_ids_T`: on the device, instead of the inputs' own."""
        assert min(inputs.token_ids) >= 0, "token ids are checked before they come here"
        assert max(inputs.token_ids) < self.vocab_size, "as above"
        rows = inputs.sampling_rows
        with torch.inference_mode():
            computed = self._compute(inputs, token_ids_T)
            if can_draw(inputs):
                logits_RV = self._logits_of(computed, [row.logit_index for row in rows])
                draw = self._sampler.draw(logits_RV, rows)
                return LaunchedStep(inputs, lambda: drawn_outputs(draw), draw)
            prompt_logprobs = [
                self._score_prompt(computed.hidden_TM, row) for row in inputs.prompt_logprobs_rows
            ]
            outputs = self._choose(computed, inputs, prompt_logprobs)
        return LaunchedStep(inputs, lambda: outputs, None)

    def assist(self, order: StepOrder) -> None:
        """What a rank above 0 does while rank 0 executes the same step: its keys and values, and
        its part of every sum and of the logits."""
        with torch.inference_mode():
            hidden_TM = self._compute(order.inputs()).hidden_TM
            for first, count in order.scored_spans:
                for start, stop in self._parts(count):
                    self._decode_rows(hidden_TM[first + start : first + stop])
            if order.logit_indices:
                indices_R = torch.tensor(order.logit_indices, device=self._device)
                self._decode_rows(hidden_TM.index_select(0, indices_R))

    def _native_decoder(
        self,
        checkpoint_dir: Path,
        config: DecoderConfig,
        engine_config: EngineConfig,
        *,
        group: TPGroup,
        random_weights: bool,
    ) -> Decoder:
        rank_config = Shards(config, rank=group.rank, size=group.size).config
        if engine_config.deterministic:
            check_deterministic(
                rank_config,
                engine_config,
                dtype=self._dtype,
                device=self._device,
                adds_in_order=group.adds_in_order,
            )
        decoder = Decoder(
            config,
            num_positions=context_limit(config, engine_config),
            dtype=self._dtype,
            device=str(self._device),
            operations=self._operations(rank_config),
            group=group,
        )
        if random_weights:
            init_random_weights(decoder, seed=0)
        else:
            load_weights(decoder, checkpoint_dir)
        is_wanted = engine_config.deterministic or are_float_products_fast()
        if is_wanted and can_multiply_floats(self._dtype, self._device.type):
            decoder.pack(native_float_product)
            self._padded = int
        elif can_pack(self._dtype, self._device.type):
            decoder.pack()
        return decoder

    def interrupt(self) -> None:
        """A GPU's steps are short, and under way before anybody could ask for their end."""
        if self._device.type == "cpu":
            self._interrupt.set()

    def forget_interrupt(self) -> None:
        self._interrupt.clear()

    def _operations(self, config: DecoderConfig) -> DecoderOperations | None:
        if runs_triton(self._device):
            made: DecoderOperations = importlib.import_module(
                "models.triton.operations"
            ).TritonOperations()
            return made
        return native_operations(config, dtype=self._dtype, device=self._device.type)

    def check_health(self) -> None:
        """A single rank is as healthy as its process."""

    def close(self) -> None:
        """Nothing outlives the process."""

    def _make_gpu_steps(
        self, shape: DecoderShape, engine_config: EngineConfig, group: TPGroup
    ) -> "GPUSteps":
        gpu_steps = importlib.import_module("models.engine.gpu_steps")
        # What ranks exchange is not captured, nor what modules of transformers do.
        is_captured = engine_config.enable_cuda_graphs and group.size == 1
        is_captured = is_captured and isinstance(self._decoder, Decoder)
        made: GPUSteps = gpu_steps.GPUSteps(
            self._decoder,
            gpu_steps.TritonAttention(
                self._kv_cache,
                num_heads=shape.num_heads,
                layer_windows=shape.layer_windows,
                max_num_seqs=engine_config.max_step_rows,
                max_model_len=self._plan.max_model_len,
            ),
            max_num_seqs=engine_config.max_step_rows,
            device=self._device,
            recorder=make_recorder() if is_captured else None,
        )
        return made

    def _compute(self, inputs: StepInputs, token_ids_T: torch.Tensor | None = None) -> ComputedStep:
        """What the model makes of a step; its rows may be followed by padding."""
        self._kv_cache.copy_blocks(inputs.block_copies)
        if inputs.layers is not None:
            assert self._chunk_layers is not None, "chunks pass all layers at once here"
            if inputs.layers.first_layer == 0:
                self._chunk_layers.begin(self._decoder_inputs(inputs.layers.chunk))
            self._chunk_layers.compute(inputs.layers)
        num_tokens = len(inputs.token_ids)
        if self._gpu_steps is not None:
            adapters = self._adapter_step(inputs, num_tokens)
            return self._gpu_steps.compute(inputs, adapters, token_ids_T)
        ids_T, positions_T, attention, adapters = self._decoder_inputs(inputs)
        if inputs.is_interruptible:
            attention = InterruptibleAttention(attention, self._interrupt)
        if token_ids_T is not None:
            ids_T[:num_tokens] = token_ids_T
        hidden_TM = self._decoder.forward(ids_T, positions_T, attention, adapters)
        return ComputedStep(hidden_TM=hidden_TM, logits_TV=None)

    def _decoder_inputs(self, inputs: StepInputs) -> DecoderInputs:
        """Of some tokens, and of those that they are padded to."""
        num_rows = self._padded(len(inputs.token_ids))
        if self._bank is not None and inputs.adapter_slots:
            num_rows = self._bank.padded(num_rows)
        ids_T, positions_T = padded_tokens(inputs, num_rows, device=self._device)
        adapters = self._adapter_step(inputs, num_rows)
        return ids_T, positions_T, self._attention.prepare(inputs), adapters

    def _adapter_step(self, inputs: StepInputs, num_rows: int) -> AdapterStep | None:
        if not inputs.adapter_slots:
            return None
        assert self._bank is not None, "without slots no sequence has one"
        return self._bank.step(inputs.adapter_slots, inputs.query_lens, num_rows=num_rows)

    def _choose(
        self,
        computed: ComputedStep,
        inputs: StepInputs,
        prompt_logprobs: list[list[TokenLogprobs]],
    ) -> StepOutputs:
        """The step's tokens, and the candidates of its beams."""
        rows = inputs.sampling_rows
        if not rows:
            return StepOutputs(token_ids=[], logprobs=[], prompt_logprobs=prompt_logprobs)
        logits_RV = self._logits_of(computed, [row.logit_index for row in rows])
        failed_rows: list[int] = []
        try:
            token_ids, logprobs = self._sampler.sample(logits_RV, rows, inputs.grammar_masks)
        except NonFiniteLogitsError as error:
            token_ids, logprobs, failed_rows = error.token_ids, error.logprobs, error.row_indices
        return StepOutputs(
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            failed_rows=frozenset(failed_rows),
            candidates=candidates_by_row(logits_RV, inputs),
        )

    def _logits_of(self, computed: ComputedStep, indices: list[int]) -> torch.Tensor:
        """Of these rows of the step."""
        made_TV = computed.logits_TV
        if made_TV is not None and indices == list(range(len(indices))):
            return made_TV[: len(indices)]
        indices_R = upload(np.array(indices, dtype=np.int64), self._device)
        if made_TV is not None:
            return made_TV.index_select(0, indices_R)
        return self._logits(computed.hidden_TM.index_select(0, indices_R))

    def _logits(self, hidden_RM: torch.Tensor) -> torch.Tensor:
        logits_RV = self._decode_rows(hidden_RM)
        assert logits_RV is not None, "rank 0 has the logits"
        return logits_RV[: len(hidden_RM)]

    def _decode_rows(self, hidden_RM: torch.Tensor) -> torch.Tensor | None:
        """Logits of padded rows on rank 0, to which every rank contributes; None elsewhere."""
        num_rows = len(hidden_RM)
        return self._decoder.logits(F.pad(hidden_RM, (0, 0, 0, self._padded(num_rows) - num_rows)))

    def _score_prompt(self, hidden_TM: torch.Tensor, row: PromptLogprobsRow) -> list[TokenLogprobs]:
        scored: list[TokenLogprobs] = []
        for start, stop in self._parts(len(row.target_token_ids)):
            first = row.first_index
            logits_NV = self._logits(hidden_TM[first + start : first + stop])
            scored += token_logprobs(logits_NV, row.target_token_ids[start:stop], row.num_top)
        return scored

    def _parts(self, num_positions: int) -> Iterator[tuple[int, int]]:
        """Starts and ends of runs of prompt positions whose logits fit into memory at once."""
        size = max(1, MAX_PROMPT_LOGITS // self.vocab_size)
        for start in range(0, num_positions, size):
            yield start, min(start + size, num_positions)


def _foreign(checkpoint_dir: Path, what: str) -> ValueError:
    return ValueError(
        f"{checkpoint_dir}: this architecture is computed by transformers' modules, "
        f"which are {what}"
    )
