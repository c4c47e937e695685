// Matrix products with quantised weights: y[m, n] = x[m, k] * w[n, k]^T, x and y float32.
//
// int8: a code in [-127, 127] for each weight, a float32 scale for each row of w. Codes are widened
// in registers; products and sums are float32.
//
// int4: groups of 32 neighbours of a row share a float16 scale. A group is 16 bytes: byte i holds
// element i in its low half and element i + 16 in its high one, each the code plus 8. x is rounded
// to int8 with one scale for the same 32 elements, so that the sums of a group are exact integers.
// What is not finite in x makes its row of y NaN.
//
// Rows of w may be any distance apart, so that shards of a mapped file are read where they are. A
// plain C interface, called through ctypes; nothing here allocates. Threads are as in gemm.cpp.

#include <cstring>

#include "parallel.h"

#ifdef POPXL_X86
#include <immintrin.h>
#endif

namespace {

using std::int8_t;
using std::uint16_t;
using std::uint64_t;
using std::uint8_t;

constexpr int64_t GROUP = 32;           // elements that share a scale
constexpr int64_t MOST_LANES = 16;      // of all sets
constexpr float LEAST_SIZE = 1e-30f;    // of the largest in a group of x; less counts as zeros
constexpr int64_t MOST_ROWS = 6;        // rows of x per pass over a piece of w
constexpr int64_t PIECE = 24;           // rows of w at a time
constexpr int64_t CODES_AHEAD = 8192;   // bytes of w of int4 between a prefetch and its use
constexpr int64_t TASK_SIZE = 1 << 18;  // elements of w that a thread reads on end

struct Rows8 {
  int64_t m, n, k;
  const float* x;
  int64_t x_row;  // elements from one row to the next, as below
  const int8_t* codes;
  int64_t codes_row;
  const float* scales;
  float* y;
  int64_t y_row;
  Team team;
};

struct Rows4 {
  int64_t m, n, k;
  int64_t x_groups;
  const int8_t* x;       // (m, x_groups * GROUP), rounded
  const float* x_scale;  // (m, x_groups)
  const float* x_shift;  // (m, x_groups): -8 times the sum of a group of x, with its scale
  const uint8_t* codes;
  int64_t codes_row;  // bytes
  const uint16_t* scales;
  int64_t scales_row;
  float* y;
  int64_t y_row;
  Team team;
};

// Rows of x in groups of at most MOST_ROWS, over pieces of w that stay in a cache.
template <class Problem, class Function>
void by_pieces(const Problem& p, const Function* by_rows) {
  const int64_t groups = parts(p.m, MOST_ROWS);
  const int64_t width = least(TASK_SIZE / most(p.k, 1), parts(p.n, 4 * p.team.threads));
  const int64_t pieces = most(width / PIECE, 1), all_pieces = parts(p.n, PIECE);
  parallel(p.team, parts(all_pieces, pieces), [&](int64_t task, int64_t) {
    const int64_t last = least(all_pieces, (task + 1) * pieces);
    for (int64_t piece = task * pieces; piece < last; ++piece) {
      const int64_t column = piece * PIECE, end = least(p.n, column + PIECE);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t row = g * p.m / groups, rows = (g + 1) * p.m / groups - row;
        by_rows[rows - 1](p, row, column, end);
      }
    }
  });
}

#ifdef POPXL_X86

namespace avx2 {
#define POPXL_SIMD __attribute__((target("avx2,fma,f16c"), always_inline)) inline
#define POPXL_ENTRY __attribute__((target("avx2,fma,f16c")))
using Vector = __m256;
constexpr int LANES = 8;
POPXL_SIMD Vector zero() { return _mm256_setzero_ps(); }
POPXL_SIMD Vector load(const float* p) { return _mm256_loadu_ps(p); }
POPXL_SIMD void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
POPXL_SIMD Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
POPXL_SIMD Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
POPXL_SIMD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
POPXL_SIMD Vector load_codes(const int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
POPXL_SIMD float total(Vector v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
using Bytes = __m256i;
POPXL_SIMD Bytes load_bytes(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
POPXL_SIMD Bytes low_halves(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
POPXL_SIMD Bytes high_halves(Bytes v) { return low_halves(_mm256_srli_epi16(v, 4)); }
POPXL_SIMD Vector dot_halves(Bytes low, Bytes x_low, Bytes high, Bytes x_high) {
  const Bytes pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, x_low),
                                       _mm256_maddubs_epi16(high, x_high));
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
POPXL_SIMD Bytes load_some_bytes(const void* p, int count) {
  alignas(32) uint8_t some[32] = {};
  std::memcpy(some, p, count);
  return load_bytes(some);
}
POPXL_SIMD Vector load_scales(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
POPXL_SIMD Vector load_some_scales(const uint16_t* p, int count) {
  alignas(16) uint16_t some[8] = {};
  std::memcpy(some, p, count * sizeof(uint16_t));
  return load_scales(some);
}
POPXL_SIMD Vector each_group(Vector scales, int quarter) {
  const __m256i first = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  return _mm256_permutevar8x32_ps(scales,
                                  _mm256_add_epi32(first, _mm256_set1_epi32(2 * quarter)));
}
#include "quantised_loops.h"
#undef POPXL_SIMD
#undef POPXL_ENTRY
}  // namespace avx2

namespace avx512 {
#define POPXL_TARGET target("avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx2,fma,f16c")
#define POPXL_SIMD __attribute__((POPXL_TARGET, always_inline)) inline
#define POPXL_ENTRY __attribute__((POPXL_TARGET))
using Vector = __m512;
constexpr int LANES = 16;
POPXL_SIMD Vector zero() { return _mm512_setzero_ps(); }
POPXL_SIMD Vector load(const float* p) { return _mm512_loadu_ps(p); }
POPXL_SIMD void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
POPXL_SIMD Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
POPXL_SIMD Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
POPXL_SIMD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
POPXL_SIMD Vector load_codes(const int8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
POPXL_SIMD float total(Vector v) {
  return avx2::total(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}
using Bytes = __m512i;
POPXL_SIMD Bytes load_bytes(const void* p) { return _mm512_loadu_si512(p); }
POPXL_SIMD Bytes low_halves(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
POPXL_SIMD Bytes high_halves(Bytes v) { return low_halves(_mm512_srli_epi16(v, 4)); }
POPXL_SIMD Vector dot_halves(Bytes low, Bytes x_low, Bytes high, Bytes x_high) {
  const Bytes sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, x_low);
  return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(sum, high, x_high));
}
POPXL_SIMD Bytes load_some_bytes(const void* p, int count) {
  return _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p);
}
POPXL_SIMD Vector load_scales(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
POPXL_SIMD Vector load_some_scales(const uint16_t* p, int count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p));
}
POPXL_SIMD Vector each_group(Vector scales, int quarter) {
  const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_permutexvar_ps(_mm512_add_epi32(first, _mm512_set1_epi32(4 * quarter)), scales);
}
#include "quantised_loops.h"
#undef POPXL_SIMD
#undef POPXL_ENTRY
}  // namespace avx512

#endif  // POPXL_X86

struct Set {
  void (*round_rows)(int64_t m, int64_t k, const float* x, int64_t x_row, int64_t x_groups,
                     int8_t* out, float* scale, float* shift);
  void (*dot8)(const Rows8&);
  void (*dot4)(const Rows4&);
  void (*widen8)(int64_t n, int64_t k, const int8_t* codes, int64_t codes_row, const float* scales,
                 uint16_t* out, Team team);
  void (*widen4)(int64_t n, int64_t k, const uint8_t* codes, int64_t codes_row,
                 const uint16_t* scales, int64_t scales_row, uint16_t* out, Team team);
};

#ifdef POPXL_X86

const Set AVX512{avx512::round_rows, avx512::dot8, avx512::dot4, avx512::widen8, avx512::widen4};
const Set AVX2{avx2::round_rows, avx2::dot8, avx2::dot4, avx2::widen8, avx2::widen4};

// By the numbers of gemm.cpp. Its AVX-512 lacks one extension that is used here.
const Set& set_of(int i) {
  static const bool vnni = __builtin_cpu_supports("avx512vnni");
  return i == 0 && vnni ? AVX512 : AVX2;
}

#else

const Set& set_of(int) {
  static const Set NONE{};
  return NONE;
}

#endif

}  // namespace

#define POPXL_EXPORT __attribute__((visibility("default")))

extern "C" {

// y = x * w^T for few rows of x, w of int8. A row of y does not depend on how many there are.
POPXL_EXPORT void popxl_native_dot8(int set, int64_t m, int64_t n, int64_t k, const float* x,
                                       int64_t x_row, const int8_t* codes, int64_t codes_row,
                                       const float* scales, float* y, int64_t y_row, int threads,
                                       Fork fork) {
  set_of(set).dot8(Rows8{m, n, k, x, x_row, codes, codes_row, scales, y, y_row, {threads, fork}});
}

// The same, w of int4 and k a multiple of 32. scratch, at a multiple of 4: for each row of x and
// each of its groups, their number rounded up to a multiple of 16, 32 bytes and two floats.
POPXL_EXPORT void popxl_native_dot4(int set, int64_t m, int64_t n, int64_t k, const float* x,
                                       int64_t x_row, const uint8_t* codes, int64_t codes_row,
                                       const uint16_t* scales, int64_t scales_row, float* y,
                                       int64_t y_row, void* scratch, int threads, Fork fork) {
  auto* rounded = static_cast<int8_t*>(scratch);
  const int64_t x_groups = parts(k / GROUP, MOST_LANES) * MOST_LANES;
  auto* x_scale = reinterpret_cast<float*>(rounded + m * x_groups * GROUP);
  float* x_shift = x_scale + m * x_groups;
  set_of(set).round_rows(m, k, x, x_row, x_groups, rounded, x_scale, x_shift);
  set_of(set).dot4(Rows4{m, n, k, x_groups, rounded, x_scale, x_shift, codes, codes_row, scales,
                         scales_row, y, y_row, {threads, fork}});
}

// Rows of int8 weights as float16, (n, k) contiguous.
POPXL_EXPORT void popxl_native_widen8(int set, int64_t n, int64_t k, const int8_t* codes,
                                         int64_t codes_row, const float* scales, uint16_t* out,
                                         int threads, Fork fork) {
  set_of(set).widen8(n, k, codes, codes_row, scales, out, {threads, fork});
}

// Rows of int4 weights as float16, (n, k) contiguous.
POPXL_EXPORT void popxl_native_widen4(int set, int64_t n, int64_t k, const uint8_t* codes,
                                         int64_t codes_row, const uint16_t* scales,
                                         int64_t scales_row, uint16_t* out, int threads,
                                         Fork fork) {
  set_of(set).widen4(n, k, codes, codes_row, scales, scales_row, out, {threads, fork});
}
}
