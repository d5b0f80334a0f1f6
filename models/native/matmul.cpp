// Products of a step's activations with matrices of floats, and the plain C interface of all products.
//
// Every result is summed up input by input in an order that depends on the matrix's width alone, and
// how it is computed on the CPU and the types alone: a token's results have the same bits whatever
// other tokens are in the step. Sums are float32.
//
// Shapes: T = tokens, O = outputs, I = inputs, K = inputs with those that fill the matrix up to a
// multiple of 64. Outputs come in blocks of 16, filled up with zeros.
//
// The layout of a matrix, by blocks of outputs: an element (output o, input k) of a block stands at
//   ((k / P) * 16 + o) * P + k % P
// with P = 2 for floats and 4 for levels, so that P inputs of 16 outputs are a vector (two for float32
// elements), and 16 of these a tile of the matrix unit.

#include "panels.h"

namespace {

// See `by_panels`.
template <class T>
struct FloatSums {
  const Product &p;
  const T *x;  // [T, K]

  static bool has_tiles() { return std::is_same_v<T, BFloat16> && has_matrix_unit(); }
  int64_t rows() const { return has_tiles() ? TILE_ROWS : VECTOR_ROWS; }
  int64_t token_bytes() const { return sizeof(T) * p.by.width; }
  int64_t panel_bytes() const { return sizeof(T) * p.by.width * WIDTH; }
  int64_t scratch_bytes(bool) const { return 0; }

  void add_up([[maybe_unused]] TileSums &tiles, int64_t panel, [[maybe_unused]] int64_t next_panel,
              int64_t first_row, int num_rows, char *, bool, bool,
              Totals &totals) const {
    const T *blocks[2] = {block(panel, 0), block(panel, 1)};
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (has_matrix_unit()) {
        const T *following[2] = {block(next_panel, 0), block(next_panel, 1)};
        tiles.begin(num_rows, 64);
        const Rows rows{x + first_row * p.by.width, token_bytes(), 64, MATRIX_ROWS * token_bytes()};
        tiles.add<T>(rows, blocks, following, p.by.width);
        return tiles.write(totals);
      }
    }
#endif
    switch (num_rows) {
#define ROWS(n) case n: return by_vectors<n>(blocks, first_row, totals);
      ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#undef ROWS
    }
  }

 private:
  const T *block(int64_t panel, int c) const {
    return (const T *)p.by.elements + (panel * 2 + c) * p.by.width * LANES;
  }

  template <int R>
  void by_vectors(const T *const *blocks, int64_t first_row, Totals &totals) const {
    VectorSums<T, R, 2> sums;
    const T *rows[R];
    for (int r = 0; r < R; r++) rows[r] = x + (first_row + r) * p.by.width;
    sums.add(rows, blocks, p.by.width);
    sums.write(totals);
  }
};

template <class T>
void multiply_floats(const Product &p) {
  by_panels<T>(p, FloatSums<T>{p, widened<T>(p)});
}

}  // namespace

bool can_gate(const Matrix &matrix) { return matrix.num_outputs % (2 * WIDTH) == 0; }

int64_t product_scratch(bool is_bfloat16, const Matrix &matrix, int64_t num_tokens) {
  if (matrix.kind != FLOATS) return level_scratch(is_bfloat16, matrix, num_tokens);
  return is_bfloat16 ? widened_bytes<BFloat16>(matrix, num_tokens) : widened_bytes<float>(matrix, num_tokens);
}

void multiply(bool is_bfloat16, const Product &product) {
  if (product.by.kind != FLOATS) return multiply_levels(is_bfloat16, product);
  is_bfloat16 ? multiply_floats<BFloat16>(product) : multiply_floats<float>(product);
}

extern "C" {

// out = x Wᵀ + bias; see the top of the file. is_bfloat16: activations, bias and results, and the
// matrix where it is one of floats; else float32.
void shoal_multiply(int is_bfloat16, const Matrix *matrix, const void *bias, const void *x, void *out,
                    int64_t num_tokens, int32_t num_threads) {
  Aligned scratch;
  scratch.reserve(product_scratch(is_bfloat16, *matrix, num_tokens));
  Product product{*matrix, x, out, num_tokens, scratch.as<void>(), num_threads, false};
  product.by.bias = bias;
  const bool is_worth_it = matrix->width * matrix->num_outputs * (num_tokens + 8) > 1 << 19;
#pragma omp parallel num_threads(num_threads) if (is_worth_it)
  multiply(is_bfloat16, product);
}
}
