// The layers of a decoder, one after the other, by one team of threads: between two operations there
// is a barrier, where a call each would cost more than most of them take at a few tokens.
//
// Every operation rounds as it does when it is called alone, so that results are the same bits.
//
// Where sequences have adapters, these act on each product's inputs before it and on its results after
// it.
//
// Where ranks share the layers, what each adds to the residual stream goes into memory that all read:
// the norms, which every rank computes for all tokens, add it up on their way.
//
// Shapes: T = tokens, M = model width, F = feed-forward width, H = query heads, K = key/value heads,
// D = head width.

#include <omp.h>

#include <algorithm>

#include "team.h"
#include "vectors.h"

namespace {

struct Layer {
  const void *input_norm, *post_attention_norm;  // [M]
  const void *q_norm, *k_norm;                   // [D] or none
  Matrix qkv, o, gate_up, down;
  int64_t window;  // 0: none
};

struct Stack {
  const Layer *layers;
  int64_t num_layers;
  const void *rope;  // [positions, 2, D]
  int64_t is_bfloat16, model_width, ff_width, num_heads, num_kv_heads, head_dim;
  double eps, scale;  // of attention's scores
  Ranks *ranks;       // that have the rest of the model; none: there is none
};

struct Step {
  void *x;      // [T, M]: the residual stream, in place
  void *added;  // [T, M]: what the last layer adds to it
  const int64_t *positions, *slots;
  void *cache;  // of the first layer
  int64_t layer_bytes, block_size;
  const int32_t *tables, *query_lens, *context_lens;
  int64_t num_sequences, table_width, num_tokens, is_invariant, num_threads;
  int64_t first_layer, stop_layer;  // those that are computed; the others were, or will be
  const AdapterMatrices *adapters;  // [layers, NUM_LINEARS]; none: no sequence has one
  const int32_t *adapter_slots;     // [T]; negative: none
  const int32_t *is_interrupted;    // none: it cannot be
  double *seconds;                  // of each part are added here, where it is given
};

enum Linear { TO_HEADS, FROM_HEADS, TO_GATES, FROM_GATES, NUM_LINEARS };  // qkv, o, gate_up, down
enum Part { NORMS, QKV, ROTATION, ATTENTION, OUTPUT, MLP, RANKS };
enum Ending { INTERRUPTED, DONE, LEFT_ALONE };

// Where the time goes, as the team's first thread sees it.
class Clock {
 public:
  explicit Clock(double *seconds) : seconds(omp_get_thread_num() == 0 ? seconds : nullptr) {
    if (this->seconds) last = now_s();
  }

  void count(Part part) {
    if (!seconds) return;
    const double at = now_s();
    seconds[part] += at - last;
    last = at;
  }

 private:
  double *seconds;
  double last = 0;
};

class Run {
 public:
  Run(const Stack &stack, const Step &step)
      : stack(stack), step(step), T(step.num_tokens), is_bfloat16(stack.is_bfloat16),
        size(is_bfloat16 ? sizeof(BFloat16) : sizeof(float)),
        q_width(stack.num_heads * stack.head_dim), kv_width(stack.num_kv_heads * stack.head_dim) {
    normed.reserve(T * stack.model_width * size);
    qkv.reserve(T * (q_width + 2 * kv_width) * size);
    attended.reserve(T * q_width * size);
    acted.reserve(T * stack.ff_width * size);
    if (step.adapters) adapters = std::make_unique<AdapterPlan>(step.adapter_slots, T);
    int64_t most = 0, most_inner = 0;
    bool has_gates = false;  // of its own, before they are applied
    for (int64_t i = 0; i < stack.num_layers; i++) {
      const Layer &layer = stack.layers[i];
      for (const Matrix *matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
        most = std::max(most, product_scratch(is_bfloat16, *matrix, T));
      plan_of.push_back(plan_for(layer.window));
      for (const Linear linear : {TO_HEADS, FROM_HEADS, TO_GATES, FROM_GATES})
        if (const AdapterMatrices *matrices = acting(i, linear))
          most_inner = std::max(most_inner, adapters->scratch(is_bfloat16, *matrices));
      has_gates |= !can_gate(layer.gate_up) || acting(i, TO_GATES);
    }
    inner.reserve(most_inner);
    if (has_gates) gate_up.reserve(T * 2 * stack.ff_width * size);
    scratch.reserve(most);
  }

  Ending run() {
#pragma omp parallel num_threads(team_size())
    {
      Clock clock(step.seconds);
      for (int64_t i = step.first_layer; i < step.stop_layer && !is_to_stop(); i++)
        compute(i, clock);
      if (stack.ranks && ending == DONE) {
        add_up(is_bfloat16, addends(), step.added, T * stack.model_width);
        clock.count(RANKS);
      }
    }
    return ending;
  }

 private:
  const Stack &stack;
  const Step &step;
  const int64_t T;
  const bool is_bfloat16;
  const size_t size;  // of an element
  const int64_t q_width, kv_width;
  Aligned normed, qkv, attended, gate_up, acted, scratch, inner;
  std::vector<int64_t> windows;
  std::vector<AttentionPlan> plans;  // one for each window
  std::vector<size_t> plan_of;       // by layer
  std::unique_ptr<AdapterPlan> adapters;
  Ending ending = DONE;

  // Where a layer takes no longer than threads take to wait for each other, one is enough; and where
  // a machine has other work, waiting for one that does not run costs far more.
  int team_size() const {
    constexpr double BYTES_PER_S = 1e10, FLOPS_PER_S = 1e11, WORTH_IT_S = 30e-6;
    const Layer &layer = stack.layers[0];
    double elements = 0;
    for (const Matrix *matrix : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      elements += double(matrix->width) * double(matrix->num_outputs);
    double keys = 0;
    for (int64_t i = 0; i < step.num_sequences; i++)
      keys += double(step.query_lens[i]) * step.context_lens[i];
    const double flops = 2 * (elements * T + 2 * keys * q_width);
    const bool is_worth_it = elements * size / BYTES_PER_S + flops / FLOPS_PER_S > WORTH_IT_S;
    return is_worth_it ? int(step.num_threads) : 1;
  }

  size_t plan_for(int64_t window) {
    for (size_t i = 0; i < windows.size(); i++)
      if (windows[i] == window) return i;
    windows.push_back(window);
    plans.emplace_back(is_bfloat16, attention(0, window), int(step.num_threads));
    return windows.size() - 1;
  }

  AttentionStep attention(int64_t layer, int64_t window) const {
    AttentionStep s{};
    s.queries = qkv.as<char>();
    s.row_stride = q_width + 2 * kv_width;
    s.cache = (char *)step.cache + layer * step.layer_bytes;
    s.out = attended.as<char>();
    s.tables = step.tables, s.query_lens = step.query_lens, s.context_lens = step.context_lens;
    s.num_sequences = step.num_sequences, s.table_width = step.table_width;
    s.num_heads = int32_t(stack.num_heads), s.num_kv_heads = int32_t(stack.num_kv_heads);
    s.head_dim = int32_t(stack.head_dim), s.block_size = int32_t(step.block_size);
    s.window = int32_t(window);
    s.scale = float(stack.scale);
    s.is_invariant = step.is_invariant;
    return s;
  }

  // All threads see the same: one looks for them.
  bool is_to_stop() {
    if (ending == LEFT_ALONE || !step.is_interrupted) return ending == LEFT_ALONE;
#pragma omp single
    if (*(const volatile int32_t *)step.is_interrupted) ending = INTERRUPTED;
    return ending != DONE;
  }

  // Where a product's results go that the next norm adds to the residual stream.
  void *own_addend() const { return stack.ranks ? next_slot(*stack.ranks) : step.added; }

  // They are there; false: another rank's are not, and will not be.
  bool have_all(Clock &clock) {
    if (!stack.ranks) return true;
#pragma omp single
    if (!meet(*stack.ranks)) ending = LEFT_ALONE;
    clock.count(RANKS);
    return ending == DONE;
  }

  Addends addends() const {
    return stack.ranks ? last_parts(*stack.ranks) : Addends{(const char *)step.added, 0, 1};
  }

  void compute(int64_t i, Clock &clock) {
    const Layer &layer = stack.layers[i];
    const Addends others{(const char *)step.added, 0, i != 0};  // of layers before this call
    norm(i == step.first_layer ? others : addends(), layer.input_norm);
    clock.count(NORMS);
    product(layer.qkv, acting(i, TO_HEADS), normed, qkv.as<char>());
    clock.count(QKV);
    const int64_t row = q_width + 2 * kv_width;
    rotate(is_bfloat16, {qkv.as<char>(), row, step.positions, stack.rope, layer.q_norm, layer.k_norm, T,
                         int32_t(stack.num_heads), int32_t(stack.num_kv_heads),
                         int32_t(stack.head_dim), float(stack.eps)});
    const AttentionStep s = attention(i, layer.window);
    const char *keys = qkv.as<char>() + q_width * size;
    store_keys_values(is_bfloat16, s, {keys, keys + kv_width * size, row, row, step.slots, T});
    clock.count(ROTATION);
    attend(is_bfloat16, s, plans[plan_of[i]]);
    clock.count(ATTENTION);
    product(layer.o, acting(i, FROM_HEADS), attended, own_addend());
    clock.count(OUTPUT);
    if (!have_all(clock)) return;
    norm(addends(), layer.post_attention_norm);
    clock.count(NORMS);
    const AdapterMatrices *at_gates = acting(i, TO_GATES);
    if (can_gate(layer.gate_up) && !at_gates) {
      product(layer.gate_up, nullptr, normed, acted.as<char>(), true);
    } else {
      product(layer.gate_up, at_gates, normed, gate_up.as<char>());
      silu_mul(is_bfloat16, gate_up.as<char>(), acted.as<char>(), T, stack.ff_width);
    }
    product(layer.down, acting(i, FROM_GATES), acted, own_addend());
    clock.count(MLP);
    have_all(clock);
  }

  void norm(const Addends &added, const void *weight) {
    add_rms_norm(is_bfloat16, step.x, added, weight, normed.as<char>(), T, stack.model_width,
                 float(stack.eps));
  }

  // What adapters have for a product; none: none of the step's acts there.
  const AdapterMatrices *acting(int64_t layer, Linear linear) const {
    if (!adapters) return nullptr;
    const AdapterMatrices &matrices = step.adapters[layer * NUM_LINEARS + linear];
    return adapters->acts(matrices) ? &matrices : nullptr;
  }

  void product(const Matrix &matrix, const AdapterMatrices *acting, const Aligned &x, void *out,
               bool is_gated = false) {
    if (acting) lora_shrink(is_bfloat16, *acting, *adapters, x.as<char>(), inner.as<char>());
    multiply(is_bfloat16, {matrix, x.as<char>(), out, T, scratch.as<char>(), int(step.num_threads),
                           is_gated});
    if (acting) lora_expand(is_bfloat16, *acting, *adapters, inner.as<char>(), out);
  }
};

}  // namespace

extern "C" {

// 1: the CPU that this is compiled for has AVX-512.
int32_t shoal_has_wide_vectors() {
#ifdef __AVX512F__
  return 1;
#else
  return 0;
#endif
}

// 1: the layers were computed; 0: the step was interrupted; 2: another rank has gone.
int32_t shoal_decode(const Stack *stack, const Step *step) { return Run(*stack, *step).run(); }
}
