// What LoRA adapters add to a linear layer's results: y += round(x Aᵀ) B, each row by its own adapter.
//
// Rows of one adapter are taken up to 16 at a time, wherever they stand in the step, so that its
// matrices are read once for all of these. In which order a sum is added up depends on the matrices
// and the CPU alone: a row's results have the same bits in any company.
//
// Matrices lie in blocks of 16 outputs, as in matmul.cpp.

#include <omp.h>

#include "panels.h"

namespace {

static_assert(sizeof AdapterRows::rows / sizeof *AdapterRows::rows == MATRIX_ROWS);
constexpr int64_t DEPTH = 16;  // inputs that a tile takes; ranks are multiples of it
constexpr int AT_ONCE = 4;  // blocks of outputs
constexpr int64_t PIECE = 16 * LANES;  // of a module's outputs: a thread takes so many at a time

// Of up to 16 rows and four blocks.
template <class T>
class BlockSums {
 public:
  BlockSums() = default;
  BlockSums(const BlockSums &) = delete;
#ifdef __AMX_BF16__
  ~BlockSums() {
    if (num_shaped) _tile_release();
  }
#endif

  // rows: [num_rows, `stride`], of which `width` are inputs.
  void add_up(const T *rows, int64_t stride, int num_rows, const T *const *blocks, int num_blocks,
              int64_t width) {
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (has_matrix_unit()) {
        shape(num_rows);
        switch (num_blocks) {
          case 1: return by_tiles<1>(rows, stride, blocks, width);
          case 2: return by_tiles<2>(rows, stride, blocks, width);
          case 3: return by_tiles<3>(rows, stride, blocks, width);
          default: return by_tiles<4>(rows, stride, blocks, width);
        }
      }
    }
#endif
    for (int first = 0; first < num_rows; first += VECTOR_ROWS)
      for (int block = 0; block < num_blocks; block += 2)
        switch (std::min(VECTOR_ROWS, num_rows - first)) {
#define ROWS(n) \
  case n: by_vectors<n>(rows, stride, first, blocks, block, num_blocks - block > 1, width); break;
          ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
        }
  }

  Floats of(int row, int block) const { return load(pairs[block / 2][row] + block % 2 * LANES); }

 private:
  alignas(64) float pairs[AT_ONCE / 2][MATRIX_ROWS][WIDTH];

  template <int R>
  void by_vectors(const T *rows, int64_t stride, int first, const T *const *blocks, int block,
                  bool is_pair, int64_t width) {
    const T *each[R];
    for (int r = 0; r < R; r++) each[r] = rows + (first + r) * stride;
    const auto write = [&](auto &&sums) {
      sums.add(each, blocks + block, width);
      sums.write(pairs[block / 2] + first);
    };
    is_pair ? write(VectorSums<T, R, 2>()) : write(VectorSums<T, R, 1>());
  }

#ifdef __AMX_BF16__
  int num_shaped = 0;

  void shape(int num_rows) {
    if (num_rows == num_shaped) return;
    num_shaped = num_rows;
    const uint8_t n = uint8_t(num_rows), depth = DEPTH / 2;
    shape_tiles({n, n, n, n, n, depth, depth, depth}, {64, 64, 64, 64, 2 * DEPTH, 64, 64, 64});
  }

  template <int C>
  void by_tiles(const BFloat16 *rows, int64_t stride, const BFloat16 *const *blocks, int64_t width) {
    _tile_zero(0);
    if constexpr (C > 1) _tile_zero(1);
    if constexpr (C > 2) _tile_zero(2);
    if constexpr (C > 3) _tile_zero(3);
    for (int64_t k = 0; k < width; k += DEPTH) {
      _tile_loadd(4, rows + k, stride * 2);
      _tile_loadd(5, blocks[0] + k * LANES, 64);
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (C > 1) {
        _tile_loadd(6, blocks[1] + k * LANES, 64);
        _tile_dpbf16ps(1, 4, 6);
      }
      if constexpr (C > 2) {
        _tile_loadd(7, blocks[2] + k * LANES, 64);
        _tile_dpbf16ps(2, 4, 7);
      }
      if constexpr (C > 3) {
        _tile_loadd(5, blocks[3] + k * LANES, 64);
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, pairs[0][0], WIDTH * 4);
    if constexpr (C > 1) _tile_stored(1, pairs[0][0] + LANES, WIDTH * 4);
    if constexpr (C > 2) _tile_stored(2, pairs[1][0], WIDTH * 4);
    if constexpr (C > 3) _tile_stored(3, pairs[1][0] + LANES, WIDTH * 4);
  }
#endif
};

// The rows one after the other: where they are, or a copy.
template <class T>
const T *gathered(const AdapterRows &of, const T *x, int64_t width, Aligned &copy) {
  const int last = of.count - 1;
  if (of.rows[last] - of.rows[0] == last) return x + of.rows[0] * width;
  if (!copy.memory) copy.reserve(MATRIX_ROWS * width * sizeof(T));
  for (int r = 0; r < of.count; r++)
    memcpy((void *)(copy.as<T>() + r * width), x + of.rows[r] * width, width * sizeof(T));
  return copy.as<T>();
}

int64_t num_pieces(int64_t num_outputs) { return (num_outputs + PIECE - 1) / PIECE; }

template <class T>
void lora_shrink(const AdapterMatrices &m, const AdapterPlan &plan, const T *x, T *inner) {
  const int64_t I = m.num_inputs, R = m.rank, P = m.num_modules, num = plan.rows.size();
  const int at_once = num < omp_get_num_threads() ? 1 : AT_ONCE;
  const int64_t num_groups = (P * R / LANES + at_once - 1) / at_once;
  BlockSums<T> sums;
  Aligned copy;
#pragma omp for collapse(2) schedule(static) nowait
  for (int64_t i = 0; i < num; i++)
    for (int64_t group = 0; group < num_groups; group++) {
      const AdapterRows &of = plan.rows[i];
      const int64_t used = m.ranks[of.slot] / LANES, first = group * at_once;
      const int count = int(std::min<int64_t>(at_once, P * used - first));
      if (count <= 0) continue;
      const T *blocks[AT_ONCE];
      int64_t places[AT_ONCE];
      for (int c = 0; c < count; c++) {
        const int64_t module = (first + c) / used, block = (first + c) % used;
        places[c] = module * R + block * LANES;
        blocks[c] = (const T *)m.a + (of.slot * P * R + places[c]) * I;
      }
      sums.add_up(gathered(of, x, I, copy), I, of.count, blocks, count, I);
      T *to = inner + i * MATRIX_ROWS * P * R;
      for (int r = 0; r < of.count; r++, to += P * R)
        for (int c = 0; c < count; c++) store(sums.of(r, c), to + places[c]);
    }
}

template <class T>
void lora_expand(const AdapterMatrices &m, const AdapterPlan &plan, const T *inner, T *out) {
  const int64_t R = m.rank, P = m.num_modules, num = plan.rows.size();
  int64_t O = 0, all_pieces = 0;
  for (int64_t module = 0; module < P; module++) {
    O += m.num_outputs[module];
    all_pieces += num_pieces(m.num_outputs[module]);
  }
  BlockSums<T> sums;
#pragma omp for collapse(2) schedule(static)
  for (int64_t i = 0; i < num; i++)
    for (int64_t p = 0; p < all_pieces; p++) {
      const AdapterRows &of = plan.rows[i];
      const int64_t used = m.ranks[of.slot];
      if (!used) continue;
      int64_t module = 0, piece = p, before = 0;  // outputs of the modules before
      for (; piece >= num_pieces(m.num_outputs[module]); module++) {
        piece -= num_pieces(m.num_outputs[module]);
        before += m.num_outputs[module];
      }
      const int64_t width = m.num_outputs[module], end = std::min((piece + 1) * PIECE, width);
      const T *b = (const T *)m.b[module] + of.slot * width * R;
      const T *rows = inner + (i * MATRIX_ROWS * P + module) * R;
      for (int64_t o = piece * PIECE; o < end; o += AT_ONCE * LANES) {
        const int count = int(std::min<int64_t>(AT_ONCE, (end - o) / LANES));
        const T *blocks[AT_ONCE];
        for (int c = 0; c < count; c++) blocks[c] = b + (o + c * LANES) * R;
        sums.add_up(rows, P * R, of.count, blocks, count, used);
        for (int r = 0; r < of.count; r++) {
          T *to = out + of.rows[r] * O + before + o;
          for (int c = 0; c < count; c++, to += LANES) store(load(to) + sums.of(r, c), to);
        }
      }
    }
}

}  // namespace

AdapterPlan::AdapterPlan(const int32_t *slots, int64_t num_tokens) {
  std::vector<int32_t> tokens;
  for (int64_t t = 0; t < num_tokens; t++)
    if (slots[t] >= 0) tokens.push_back(int32_t(t));
  std::stable_sort(tokens.begin(), tokens.end(),
                   [&](int32_t one, int32_t other) { return slots[one] < slots[other]; });
  for (const int32_t t : tokens) {
    if (rows.empty() || rows.back().slot != slots[t] || rows.back().count == MATRIX_ROWS)
      rows.push_back({slots[t], 0, {}});
    rows.back().rows[rows.back().count++] = t;
  }
}

bool AdapterPlan::acts(const AdapterMatrices &matrices) const {
  return std::any_of(rows.begin(), rows.end(),
                     [&](const AdapterRows &of) { return matrices.ranks[of.slot] > 0; });
}

int64_t AdapterPlan::scratch(bool is_bfloat16, const AdapterMatrices &matrices) const {
  const int64_t size = is_bfloat16 ? sizeof(BFloat16) : sizeof(float);
  return int64_t(rows.size()) * MATRIX_ROWS * matrices.num_modules * matrices.rank * size;
}

void lora_shrink(bool is_bfloat16, const AdapterMatrices &matrices, const AdapterPlan &plan,
                 const void *x, void *inner) {
  is_bfloat16 ? lora_shrink(matrices, plan, (const BFloat16 *)x, (BFloat16 *)inner)
              : lora_shrink(matrices, plan, (const float *)x, (float *)inner);
}

void lora_expand(bool is_bfloat16, const AdapterMatrices &matrices, const AdapterPlan &plan,
                 const void *inner, void *out) {
  is_bfloat16 ? lora_expand(matrices, plan, (const BFloat16 *)inner, (BFloat16 *)out)
              : lora_expand(matrices, plan, (const float *)inner, (float *)out);
}

extern "C" {

// Adds to `out` in place. slots: [T], of each row; negative: none.
void shoal_add_adapters(int is_bfloat16, const AdapterMatrices *matrices, const int32_t *slots,
                        const void *x, void *out, int64_t num_tokens, int32_t num_threads) {
  const AdapterPlan plan(slots, num_tokens);
  if (!plan.acts(*matrices)) return;
  Aligned inner;
  inner.reserve(plan.scratch(is_bfloat16, *matrices));
#pragma omp parallel num_threads(num_threads) if (num_tokens > 1)
  {
    lora_shrink(is_bfloat16, *matrices, plan, x, inner.as<void>());
#pragma omp barrier
    lora_expand(is_bfloat16, *matrices, plan, inner.as<void>(), out);
  }
}
}
