// What the kernels offer to a team of threads that is at work already. Every thread of the team calls
// them with the same arguments; all results are there when they return, where nothing else is said.
// Called outside of a team, they do their work alone.
//
// is_bfloat16: else float32. Shapes: as where they are defined.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

// ---------------------------------------------------------------- products (matmul.cpp)

enum Kind { FLOATS, INT8, INT4, INT8_DYNAMIC };

struct Matrix {
  int64_t kind;
  const void *elements;
  const float *scales;   // of levels
  const uint8_t *zeros;  // likewise; none: 128 for int8, 0 for int4
  const void *bias;      // [O] or none
  int64_t num_inputs, width, num_outputs, group_size;  // width: K
  int64_t is_invariant;  // a token's results have the same bits in any company
};

struct Product {
  Matrix by;
  const void *x;      // [T, I]
  void *out;          // [T, O]
  int64_t num_tokens;
  void *scratch;      // as many bytes as `product_scratch` says, for the whole team
  int num_threads;
  bool is_gated = false;  // out: [T, O / 2] = silu(first half) * second half, where `can_gate`
};

bool can_gate(const Matrix &matrix);
int64_t product_scratch(bool is_bfloat16, const Matrix &matrix, int64_t num_tokens);
void multiply(bool is_bfloat16, const Product &product);

// Of levels (levels.cpp): what `multiply` and `product_scratch` do with them.
int64_t level_scratch(bool is_bfloat16, const Matrix &matrix, int64_t num_tokens);
void multiply_levels(bool is_bfloat16, const Product &product);

// ---------------------------------------------------------------- attention (attention.cpp)

struct AttentionStep {
  const void *queries;       // [T, ...]: H heads of D at the start of a row
  int64_t row_stride;        // elements from one token's queries to the next one's
  void *cache;               // one layer: [B, 2, K, S * D]
  void *out;                 // [T, H * D]
  const int32_t *tables;     // [sequences, table_width]
  const int32_t *query_lens; // [sequences]
  const int32_t *context_lens;
  int64_t num_sequences, table_width;
  int32_t num_heads, num_kv_heads, head_dim, block_size;
  int32_t window;  // keys that a query sees, its own included; 0: all
  float scale;
  // A token's output has the same bits whatever else is in the step: keys are taken in chunks and
  // parts that begin at multiples of their sizes, and one unit computes tiles of any number of rows.
  bool is_invariant;
};

struct Tile {
  int32_t sequence, kv_head, first_query, num_queries, first_row;
  int32_t first_key, end_key;  // which keys this tile looks at
  int32_t part;                // of the partial results; -1: the tile writes its output itself
};

struct Partial {
  std::vector<float> tops, totals, out;  // [R], [R], [R, D], not yet divided
};

// How a step's attention is shared out: the same for all layers of one window.
struct AttentionPlan {
  std::vector<Tile> whole, split;
  std::vector<std::pair<int, int>> parts_of;  // by whole tile: first part, number of parts
  std::vector<Partial> partials;

  AttentionPlan(bool is_bfloat16, const AttentionStep &step, int num_threads);
};

struct NewKeys {
  const void *keys, *values;  // [T, K, D], their tokens `…_stride` elements apart
  int64_t key_stride, value_stride;
  const int64_t *slots;  // [T]
  int64_t num_tokens;
};

void store_keys_values(bool is_bfloat16, const AttentionStep &step, const NewKeys &added);
void attend(bool is_bfloat16, const AttentionStep &step, AttentionPlan &plan);

// ---------------------------------------------------------------- ranks (ranks.cpp)

// Numbers that are added up one by one, in their order: [count, ...], `stride` bytes apart.
struct Addends {
  const char *first;
  int64_t stride, count;
};

// One rank's view of those that share a model and this machine. size: how many there are.
struct Ranks {
  char *memory;                // [2, size] slots, behind what each has arrived at; zero at first
  const int32_t *process_fds;  // [size]: readable once that process has ended; negative: our own
  int64_t rank, size, slot_bytes;
  double timeout_s;            // of an exchange
  int64_t num_exchanges;       // so far
};

void *next_slot(const Ranks &ranks);     // for this rank's part of the next exchange
// One thread of the rank calls it when that is written; false: another did not come.
bool meet(Ranks &ranks);
Addends last_parts(const Ranks &ranks);  // of all ranks, in their order, of the exchange that was

// ---------------------------------------------------------------- LoRA adapters (adapters.cpp)

// Of the adapters in all slots, for one linear layer in which P modules are fused. Blocks of 16
// outputs, as products have them; R: the slots' rank, a multiple of 16.
struct AdapterMatrices {
  const void *a;               // [slots, P, R / 16, I / 2, 16, 2]
  const void *const *b;        // of each module [slots, its outputs / 16, R / 2, 16, 2]
  const int64_t *num_outputs;  // of each module
  const int64_t *ranks;        // [slots]: what is used of R, a multiple of 16; 0: it does not act here
  int64_t num_inputs, num_modules, rank;
};

struct AdapterRows {
  int32_t slot, count;
  int32_t rows[16];  // of the step, in their order
};

// Whose adapter acts on which rows of a step.
struct AdapterPlan {
  std::vector<AdapterRows> rows;

  AdapterPlan(const int32_t *slots, int64_t num_tokens);  // negative: none
  bool acts(const AdapterMatrices &matrices) const;
  int64_t scratch(bool is_bfloat16, const AdapterMatrices &matrices) const;  // bytes of `inner`
};

// inner = x Aᵀ. It is there after the next barrier.
void lora_shrink(bool is_bfloat16, const AdapterMatrices &matrices, const AdapterPlan &plan,
                 const void *x, void *inner);
// out += inner B
void lora_expand(bool is_bfloat16, const AdapterMatrices &matrices, const AdapterPlan &plan,
                 const void *inner, void *out);

// ---------------------------------------------------------------- small operations (kernels.cpp)

struct Heads {
  void *x;             // [T, ...]: H + K heads of D at the start of a row
  int64_t row_stride;  // elements
  const int64_t *positions;
  const void *table, *q_norm, *k_norm;
  int64_t num_tokens;
  int32_t num_heads, num_kv_heads, head_dim;
  float eps;
};

// x += the sum of what is added (where there is any), out = x / rms(x), rounded, times the weight.
void add_rms_norm(bool is_bfloat16, void *x, const Addends &added, const void *weight, void *out,
                  int64_t num_rows, int64_t width, float eps);
// out = the sum. count: of numbers, a multiple of 16.
void add_up(bool is_bfloat16, const Addends &parts, void *out, int64_t count);
// A token's heads are there for the thread that stores its keys; for others only after a barrier.
void rotate(bool is_bfloat16, const Heads &heads);
void silu_mul(bool is_bfloat16, const void *gate_up, void *out, int64_t num_rows, int64_t width);
