"""Records a computed step: appends tokens, forks, advances beams, ends sequences."""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence

from cluster.types import TokenDelta, TokenLogprobs
from models.engine.batch import Batch, Draft, end_token_ids, prompt_logprobs_row
from models.engine.beam_group import BeamGroup
from models.engine.beam_search import BeamSearch
from models.engine.deltas import failed_delta, hypothesis_deltas, joined_delta, token_delta
from models.engine.sequence import Sequence, SequenceStatus
from models.engine.sequence_table import SequenceTable
from models.engine.step_inputs import BeamCandidates, StepOutputs
from models.engine.stop_string_tail import StopStringTail


class StepRecorder:
    """Changes the sequences of a table by what steps chose for them."""

    def __init__(
        self,
        table: SequenceTable,
        *,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        token_bytes: Callable[[int], bytes] | None,
    ) -> None:
        """`token_bytes` spells tokens, for the stop strings of beams."""
        self._table = table
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._token_bytes = token_bytes
        self._beam_groups: dict[str, BeamGroup] = {}
        # Totals since the start.
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0

    def begin(self, sequences: AbstractSequence[Sequence]) -> None:
        """A new request: what ends its sequences, and their group if they are beams."""
        first = sequences[0]
        if first.params.beam is not None:
            self._beam_groups[first.request_id] = self._new_beam_group(first)
        for sequence in sequences:
            sequence.end_token_ids = end_token_ids(sequence.params, self._eos_token_ids)
            sequence.limit_to(self._max_model_len)

    def has_beams(self, request_id: str) -> bool:
        return request_id in self._beam_groups

    def forget(self, request_id: str) -> None:
        """A request was given up as a whole."""
        self._beam_groups.pop(request_id, None)

    def record(self, batch: Batch, outputs: StepOutputs) -> list[TokenDelta]:
        """Plain tokens go to their sequences' outlets; returned is what else there is to tell."""
        deltas: list[TokenDelta] = []
        row = self._record_singles(batch, outputs, deltas)
        for draft in batch.drafts:
            deltas.append(self._record_draft(draft, outputs, row))
            row += draft.num_tokens
        self._record_chunks(batch, outputs, row, deltas)
        return deltas

    def _record_singles(self, batch: Batch, outputs: StepOutputs, deltas: list[TokenDelta]) -> int:
        """Record what the singles' rows say, the first of them 0; return the next."""
        token_ids, failed_rows = outputs.token_ids, outputs.failed_rows
        row = num_plain = 0
        for sequence in batch.singles:
            sequence.num_computed_tokens += 1
            if not sequence.is_plain or row in failed_rows:
                row = self._record_rows(sequence, outputs, row, deltas)
                continue
            token_id = token_ids[row]
            row += 1
            sequence.append(token_id)
            if token_id in sequence.end_token_ids or sequence.num_tokens >= sequence.max_num_tokens:
                deltas.append(self._report(sequence, token_id, None))
            else:
                num_plain += 1
                sequence.outlet.add(sequence.key, sequence.index, token_id)
        self.num_generated_tokens += num_plain
        return row

    def _record_draft(self, draft: Draft, outputs: StepOutputs, row: int) -> TokenDelta:
        """Record what was chosen, from `row` on, as long as the guess was right about the choices
        before it."""
        sequence = draft.sequence
        told: list[TokenDelta] = []
        for index in range(draft.num_tokens):
            sequence.num_computed_tokens += 1
            if row + index in outputs.failed_rows:
                told.append(self._fail(sequence))
                break
            token_id = outputs.token_ids[row + index]
            told.append(self._append(sequence, token_id, outputs.logprobs[row + index]))
            if index == len(draft.token_ids) or token_id != draft.token_ids[index]:
                break
            draft.num_accepted += 1
            if sequence.status is SequenceStatus.FINISHED:
                break
        is_over = sequence.status is SequenceStatus.FINISHED
        if not is_over and not outputs.failed_rows.isdisjoint(range(row, row + draft.num_tokens)):
            # What is not a number, behind its last token, would survive the mask of attention.
            self._table.preempt(sequence)
        return joined_delta(told)

    def _record_chunks(
        self, batch: Batch, outputs: StepOutputs, row: int, deltas: list[TokenDelta]
    ) -> None:
        prompt_logprobs = iter(outputs.prompt_logprobs)
        for sequence, num_new_tokens in batch.chunks:
            if prompt_logprobs_row(sequence, num_new_tokens, 0) is not None:
                sequence.prompt_logprobs.extend(next(prompt_logprobs))
            sequence.num_computed_tokens += num_new_tokens
            if sequence.num_computed_tokens == sequence.num_tokens:
                row = self._record_rows(sequence, outputs, row, deltas)
        layer_slice = batch.layer_slice
        if layer_slice is not None and layer_slice.is_last:
            layer_slice.chunk.sequence.num_computed_tokens += layer_slice.chunk.num_tokens

    def _record_rows(
        self, sequence: Sequence, outputs: StepOutputs, row: int, deltas: list[TokenDelta]
    ) -> int:
        """Record what a sampled sequence's rows say, the first of them `row`; return the next."""
        if sequence.params.beam is not None:
            candidates, logprobs = outputs.candidates[row], outputs.logprobs[row]
            deltas += self._report_beam(sequence, candidates, logprobs)
            return row + 1
        for fork in self._forks(sequence):
            if row in outputs.failed_rows:
                deltas.append(self._fail(fork))
            else:
                token_id, logprobs = outputs.token_ids[row], outputs.logprobs[row]
                deltas.append(self._append(fork, token_id, logprobs))
            row += 1
        return row

    def _forks(self, sequence: Sequence) -> list[Sequence]:
        """The sequence and, once its prompt is computed, the continuations it was asked for."""
        forks = [sequence.fork(index) for index in range(1, sequence.num_slots)]
        if forks:
            sequence.num_pending_forks = 0
            self._table.add_forks(forks)
        return [sequence, *forks]

    def _append(
        self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None
    ) -> TokenDelta:
        if not sequence.output_token_ids and sequence.index == 0:
            self.num_prompt_tokens += sequence.num_prompt_tokens
            self.num_cached_tokens += sequence.num_cached_tokens
        if not sequence.try_accept(token_id):
            self.num_generated_tokens += 1
            return self._fail(sequence)
        sequence.append(token_id)
        if logprobs is not None:
            sequence.cumulative_logprob += logprobs.logprob
        sequence.is_plain = sequence.has_plain_params and (
            len(sequence.output_token_ids) > sequence.params.min_tokens
        )
        return self._report(sequence, token_id, logprobs)

    def _report(
        self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None
    ) -> TokenDelta:
        """What to tell of a token that was appended. A sequence that it ends is dropped."""
        self.num_generated_tokens += 1
        ending = sequence.ending(token_id)
        if ending[0] is not None:
            self._table.drop(sequence)
        is_first = len(sequence.output_token_ids) == 1
        return token_delta(sequence, token_id, logprobs, ending, is_first=is_first)

    def _fail(self, sequence: Sequence) -> TokenDelta:
        """End a sequence that has no next token."""
        self._table.drop(sequence)
        return failed_delta(sequence, sequence.index)

    def _new_beam_group(self, sequence: Sequence) -> BeamGroup:
        params = sequence.params
        assert params.beam is not None
        search = BeamSearch(
            params.beam,
            end_token_ids=end_token_ids(params, self._eos_token_ids),
            ends_with_stop_string=StopStringTail(
                params.beam.stop_strings, self._token_bytes, min_tokens=params.min_tokens
            ),
        )
        return BeamGroup(sequence, search)

    def _report_beam(
        self, beam: Sequence, candidates: BeamCandidates, logprobs: TokenLogprobs | None
    ) -> list[TokenDelta]:
        """Note what a beam learned. The last one of its group moves all of them on."""
        group = self._beam_groups[beam.request_id]
        if beam.num_pending_forks:
            self.num_prompt_tokens += beam.num_prompt_tokens
            self.num_cached_tokens += beam.num_cached_tokens
            beam.num_pending_forks = 0
        if not beam.output_token_ids:
            group.prompt_logprobs = beam.take_prompt_logprobs()
        group.report(beam, candidates, logprobs)
        return self._advance_beams(group) if group.is_complete else []

    def _advance_beams(self, group: BeamGroup) -> list[TokenDelta]:
        first = group.beams[0]
        limit = first.params.max_tokens
        is_last = (
            limit is not None and len(first.output_token_ids) + 1 >= limit
        ) or first.num_tokens + 1 >= self._max_model_len
        following = group.advance(is_last_position=is_last)
        if not following:
            return self._end_beams(first, group)
        new_forks = [beam.sequence for beam in following if beam.is_fork]
        self._table.replace_beams(group.beams, new_forks)
        for beam in following:
            sequence, continuation = beam.sequence, beam.continuation
            # A beam whose grammar gives up gets an empty mask, and so no further candidates.
            sequence.try_accept(continuation.token_id)
            sequence.append(continuation.token_id)
            sequence.cumulative_logprob = continuation.score
            if continuation.logprobs is not None:
                sequence.output_logprobs.append(continuation.logprobs)
            self._table.unpark(sequence)
        return []

    def _end_beams(self, first: Sequence, group: BeamGroup) -> list[TokenDelta]:
        for sequence in list(self._table.of_request(first.request_id)):
            self._table.drop(sequence)
        del self._beam_groups[first.request_id]
        deltas = hypothesis_deltas(first, group.search.hypotheses, group.prompt_logprobs)
        self.num_generated_tokens += sum(len(delta.token_ids) for delta in deltas)
        return deltas
