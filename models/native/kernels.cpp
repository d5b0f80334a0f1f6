// The small operations of a decoder's step on a CPU, where torch spends more on moving than on
// computing. Plain C interface.
//
// Shapes: T = tokens, M = model width, F = feed-forward width, H = query heads, K = key/value heads,
// D = head width.

#include "team.h"
#include "vectors.h"

namespace {

template <class T>
void add_rms_norm(T *x, const Addends &added, const T *weight, T *out, int64_t num_rows,
                  int64_t width, float eps) {
#pragma omp for schedule(static)
  for (int64_t r = 0; r < num_rows; r++) {
    T *row = x + r * width, *to = out + r * width;
    Floats squares = Floats{};
    for (int64_t i = 0; i < width; i += LANES) {
      Floats value = load(row + i);
      if (added.count) {
        value = as_stored(value + sum_at(added, r * width + i, row), row);
        store(value, row + i);
      }
      squares += value * value;
    }
    const float factor = 1.f / std::sqrt(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
      store(as_stored(load(row + i) * factor, row) * load(weight + i), to + i);
  }
}

template <class T>
void add_up(const Addends &parts, T *out, int64_t count) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < count; i += LANES) store(sum_at(parts, i, out), out + i);
}

// The N = H + K first heads of each row are rotated in place; before that, where there are norms,
// each is divided by its root mean square. table: [positions, 2, D]: cosines, signed sines.
template <class T>
void rotate(const Heads &h) {
  const int D = h.head_dim, half = D / 2;
#pragma omp for schedule(static) nowait
  for (int64_t t = 0; t < h.num_tokens; t++) {
    const T *cosines = (const T *)h.table + h.positions[t] * 2 * D, *sines = cosines + D;
    for (int n = 0; n < h.num_heads + h.num_kv_heads; n++) {
      T *x = (T *)h.x + t * h.row_stride + int64_t(n) * D;
      const T *norm = (const T *)(n < h.num_heads ? h.q_norm : h.k_norm);
      if (norm) {
        Floats squares = Floats{};
        for (int d = 0; d < D; d += LANES) squares += load(x + d) * load(x + d);
        const float factor = 1.f / std::sqrt(sum(squares) / D + h.eps);
        for (int d = 0; d < D; d += LANES)
          store(as_stored(load(x + d) * factor, x) * load(norm + d), x + d);
      }
      for (int d = 0; d < half; d += LANES) {
        Floats low = load(x + d), high = load(x + half + d);
        store(low * load(cosines + d) + high * load(sines + d), x + d);
        store(high * load(cosines + half + d) + low * load(sines + half + d), x + half + d);
      }
    }
  }
}

// gate_up: [T, 2F]; out: [T, F] = gate * sigmoid(gate) * up
template <class T>
void silu_mul(const T *gate_up, T *out, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
  for (int64_t r = 0; r < num_rows; r++) {
    const T *gate = gate_up + r * 2 * width, *up = gate + width;
    for (int64_t i = 0; i < width; i += LANES)
      store(gated<T>(load(gate + i), load(up + i)), out + r * width + i);
  }
}

// The largest of a row and where it first stands; a NaN is larger than any number.
template <class T>
void row_maximum(const T *row, int64_t width, T *top, int64_t *place) {
  constexpr int64_t STRETCH = 1024;  // is looked at twice if it has the largest so far
  const float NONE = -INFINITY;
  float best = NONE;
  *place = 0, *top = row[0];
  for (int64_t first = 0; first < width; first += STRETCH) {
    const int64_t end = first + STRETCH < width ? first + STRETCH : width;
    Floats highest = splat(NONE);
    Ints has_nan = Ints{};
    int64_t i = first;
    for (; i + LANES <= end; i += LANES) {
      const Floats values = load(row + i);
      has_nan |= (Ints)(values != values);
      highest = larger(values, highest);
    }
    float here = largest(highest);
    bool is_nan = false;
    for (int lane = 0; lane < LANES; lane++) is_nan |= has_nan[lane] != 0;
    for (; i < end; i++) {
      const float value = to_float(row[i]);
      is_nan |= value != value;
      here = value > here ? value : here;
    }
    if (!is_nan && here <= best) continue;
    for (i = first; i < end; i++) {
      const float value = to_float(row[i]);
      if (is_nan ? value != value : value == here) break;
    }
    best = here, *place = i, *top = row[i];
    if (is_nan) return;
  }
}

}  // namespace

// All widths are multiples of 16, head widths of 32.
void add_rms_norm(bool is_bfloat16, void *x, const Addends &added, const void *weight, void *out,
                  int64_t num_rows, int64_t width, float eps) {
  if (is_bfloat16)
    add_rms_norm((BFloat16 *)x, added, (const BFloat16 *)weight, (BFloat16 *)out, num_rows, width,
                 eps);
  else
    add_rms_norm((float *)x, added, (const float *)weight, (float *)out, num_rows, width, eps);
}

void add_up(bool is_bfloat16, const Addends &parts, void *out, int64_t count) {
  is_bfloat16 ? add_up(parts, (BFloat16 *)out, count) : add_up(parts, (float *)out, count);
}

void rotate(bool is_bfloat16, const Heads &heads) {
  is_bfloat16 ? rotate<BFloat16>(heads) : rotate<float>(heads);
}

void silu_mul(bool is_bfloat16, const void *gate_up, void *out, int64_t num_rows, int64_t width) {
  if (is_bfloat16)
    silu_mul((const BFloat16 *)gate_up, (BFloat16 *)out, num_rows, width);
  else
    silu_mul((const float *)gate_up, (float *)out, num_rows, width);
}

extern "C" {

void shoal_add_rms_norm(int is_bfloat16, void *x, const void *added, const void *weight, void *out,
                        int64_t num_rows, int64_t width, float eps, int32_t num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_rows * width > 8192)
  add_rms_norm(is_bfloat16, x, {(const char *)added, 0, added != nullptr}, weight, out, num_rows,
               width, eps);
}

void shoal_rotate(int is_bfloat16, void *heads, int64_t row_stride, const int64_t *positions,
                  const void *table, const void *q_norm, const void *k_norm, int64_t num_tokens,
                  int32_t H, int32_t K, int32_t D, float eps, int32_t num_threads) {
  const Heads all{heads, row_stride, positions, table, q_norm, k_norm, num_tokens, H, K, D, eps};
#pragma omp parallel num_threads(num_threads) if (num_tokens > 4)
  rotate(is_bfloat16, all);
}

// x: rows of `width` numbers, `row_stride` elements apart. tops, places: [R].
void shoal_row_maxima(int is_bfloat16, const void *x, int64_t row_stride, int64_t num_rows,
                      int64_t width, void *tops, int64_t *places, int32_t num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_rows > 1)
  for (int64_t r = 0; r < num_rows; r++) {
    if (is_bfloat16)
      row_maximum((const BFloat16 *)x + r * row_stride, width, (BFloat16 *)tops + r, places + r);
    else
      row_maximum((const float *)x + r * row_stride, width, (float *)tops + r, places + r);
  }
}

void shoal_silu_mul(int is_bfloat16, const void *gate_up, void *out, int64_t num_rows,
                    int64_t width, int32_t num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_rows * width > 4096)
  silu_mul(is_bfloat16, gate_up, out, num_rows, width);
}
}
