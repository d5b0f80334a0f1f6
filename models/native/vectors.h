// Vectors of 16 numbers, bfloat16, powers, aligned memory, a clock, and whether there is a matrix unit: what the
// kernels have in common.
// GCC's vector types, so that the same source fits AVX2, AVX-512 and NEON, with one instruction of its
// own for bfloat16 dot products where the CPU has it.

#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#if defined(__AVX2__) || defined(__AMX_TILE__)
#include <immintrin.h>
#endif
#ifdef __AMX_TILE__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int LANES = 16;
constexpr int MATRIX_ROWS = 16;  // of a tile of the matrix unit (AMX)

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef float FloatsAt __attribute__((vector_size(64), aligned(4)));
typedef uint32_t WordsAt __attribute__((vector_size(64), aligned(2)));
typedef uint16_t HalvesAt __attribute__((vector_size(32), aligned(2)));

struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr int PER_LANE = 4 / sizeof(T);

inline Floats splat(float x) { return x - Floats{}; }

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline void store(float x, float *to) { *to = x; }
inline void store(float x, BFloat16 *to) {  // round to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &x, 4);
  to->bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}

inline Floats load(const float *from) { return *(const FloatsAt *)from; }
inline Floats load(const BFloat16 *from) {
  return (Floats)(__builtin_convertvector(*(const HalvesAt *)from, Words) << 16);
}
inline void store(Floats x, float *to) { *(FloatsAt *)to = x; }
inline void store(Floats x, BFloat16 *to) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  Words bits = (Words)x;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = (Ints)(x == x) ? rounded : (Words{} + 0x7fc0);
  *(HalvesAt *)to = __builtin_convertvector(rounded, Halves);
#endif
}
// Rounded as the element type rounds, and back.
inline Floats as_stored(Floats x, const float *) { return x; }
inline Floats as_stored(Floats x, const BFloat16 *) {
#ifdef __AVX512BF16__
  const __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)x);
  return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
  BFloat16 memory[LANES];
  store(x, memory);
  return load(memory);
#endif
}

inline float sum(Floats x) {
  float total = 0;
  for (int i = 0; i < LANES; i++) total += x[i];
  return total;
}

// Lane by lane the larger one; `y` where either is NaN.
inline Floats larger(Floats x, Floats y) {
#ifdef __AVX512F__
  return (Floats)_mm512_max_ps((__m512)x, (__m512)y);
#else
  return x > y ? x : y;
#endif
}
inline float largest(Floats x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)x);
#else
  float top = x[0];
  for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
  return top;
#endif
}

constexpr float LOG2_E = 1.44269504f;

// 2 to the z, for z up to 127; 0 far below -126. A power of two times a polynomial, with as many terms
// as the element type has use for; exactly 1 for 0.
template <class T>
inline Floats power_of_two(Floats z) {
#ifdef __AVX512DQ__
  // On [0, 1): what the instruction leaves of z is what the other one rounds off.
  const Floats f = (Floats)_mm512_reduce_ps((__m512)z, _MM_FROUND_TO_NEG_INF);
  Floats p;
  if constexpr (std::is_same_v<T, float>) {
    p = splat(2.16129153e-4f);
    p = p * f + 1.24678463e-3f;
    p = p * f + 9.67545158e-3f;
    p = p * f + 5.54852806e-2f;
    p = p * f + 2.40229306e-1f;
    p = p * f + 6.93147044e-1f;
  } else {
    p = splat(7.70670440e-2f);
    p = p * f + 2.27644988e-1f;
    p = p * f + 6.95116788e-1f;
  }
  p = p * f + 1.f;
  return (Floats)_mm512_scalef_ps((__m512)p, (__m512)z);
#else
  constexpr float ROUNDS = 12582912.f;  // 3 * 2^22: adding it leaves the integer in the low bits
  const Ints is_tiny = z < splat(-126.f);
  z = is_tiny ? splat(0.f) : z;
  const Floats shifted = z + ROUNDS;
  const Floats f = z - (shifted - ROUNDS);  // on [-1/2, 1/2]
  Floats p;
  if constexpr (std::is_same_v<T, float>) {
    p = splat(1.54035304e-4f);
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
  } else {
    p = splat(9.61812911e-3f);
  }
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.f;
  const Floats value = (Floats)((Ints)p + ((Ints)shifted << 23));
  return is_tiny ? splat(0.f) : value;
#endif
}

// The sum of what each of several parts has there, as the element type rounds it.
template <class T, class Parts>
inline Floats sum_at(const Parts &parts, int64_t i, const T *type) {
  const char *part = parts.first + i * sizeof(T);
  Floats total = load((const T *)part);
  if (parts.count == 1) return total;
  for (int64_t n = 1; n < parts.count; n++) total += load((const T *)(part + n * parts.stride));
  return as_stored(total, type);
}

// silu(gate) * up, rounded in between.
template <class T>
inline Floats gated(Floats gate, Floats up) {
  const Floats power = gate > splat(-88.f) ? -gate : splat(88.f);
  const Floats activated = as_stored(gate / (power_of_two<T>(power * LOG2_E) + 1.f), (const T *)nullptr);
  return activated * up;
}

// Lines into the second cache, `stride` elements apart.
template <class T>
inline void fetch(const T *from, int num_lines, int64_t stride) {
  for (int i = 0; i < num_lines; i++) __builtin_prefetch(from + i * stride, 0, 2);
}

inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Aligned {
  std::unique_ptr<void, decltype(&free)> memory{nullptr, free};
  void reserve(size_t bytes) { memory.reset(aligned_alloc(64, (bytes + 63) / 64 * 64)); }
  template <class T>
  T *as() const { return (T *)memory.get(); }
};

// acc += the lanes of 16 x P elements times the P elements of one query (or weight), lane by lane.
inline void multiply_add(Floats &acc, const float *sixteen, const float *one) {
  acc += load(sixteen) * *one;
}
inline void multiply_add(Floats &acc, const BFloat16 *sixteen, const BFloat16 *one) {
  uint32_t pair;
  memcpy(&pair, one, 4);
#ifdef __AVX512BF16__
  acc = (Floats)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_loadu_si512(sixteen),
                                 (__m512bh)_mm512_set1_epi32(int(pair)));
#else
  Words words = *(const WordsAt *)sixteen;
  acc += (Floats)(words << 16) * to_float(one[0]);
  acc += (Floats)(words & 0xffff0000u) * to_float(one[1]);
#endif
}

// Linux hands the matrix unit to processes that ask for it.
inline bool has_matrix_unit() {
#ifdef __AMX_TILE__
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  static const bool is_granted = !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
  return is_granted;
#else
  return false;
#endif
}

#ifdef __AMX_TILE__
constexpr uint8_t WHOLE_ROWS[8] = {64, 64, 64, 64, 64, 64, 64, 64};

// Shapes of the unit's eight tiles, and the bytes of their rows. It takes as long as ten products.
inline void shape_tiles(const uint8_t (&rows)[8], const uint8_t (&row_bytes)[8] = WHOLE_ROWS) {
  alignas(64) struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {};
    uint8_t num_rows[16] = {};
  } shapes;
  memcpy(shapes.num_rows, rows, sizeof rows);
  std::copy(row_bytes, row_bytes + 8, shapes.bytes_per_row);
  asm volatile("" : : "r"(&shapes) : "memory");  // compilers think that eight bytes of it are read
  _tile_loadconfig(&shapes);
}
#endif

}  // namespace
