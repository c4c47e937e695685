// Matrix products with half-precision weights: y[m, n] = x[m, k] * w[n, k]^T; attention of few
// queries over many keys and values of any precision; rotary positions.
//
// x and y are float32; w, keys and values are float16 or bfloat16 (the latter two also float32, or
// int8 with a scale for each row), row-major with any distance between rows, so that shards of a
// mapped file and parts of a cache are read where they are. Every product and sum is float32.
//
// A plain C interface, called through ctypes: no Python, no torch. Nothing here allocates.
//
// The loops are in gemm_loops.h and attention_loops.h, which are included once per instruction set
// with the few operations that they are written in. A new set (NEON, say) is one more block of those
// operations below and one row of SETS.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "parallel.h"

#ifdef POPXL_X86
#include <immintrin.h>
#endif

namespace {

using std::uint16_t;

struct Half {  // float16
  using Stored = uint16_t;
};
struct Brain {  // bfloat16
  using Stored = uint16_t;
};
struct Single {
  using Stored = float;
};
struct Octet {  // int8
  using Stored = std::int8_t;
};
enum Type { HALF, BRAIN, SINGLE, OCTET };
enum Mask { NO_MASK, VISIBLE, HIDDEN, ADDED };

struct Problem {
  int64_t m, n, k;
  const float* x;
  int64_t x_row;  // elements from one row to the next, as below
  const uint16_t* w;
  int64_t w_row;
  float* y;
  int64_t y_row;
  float* scratch;
  int threads;
  Fork fork;
};

struct Strides {  // in elements, of three outer axes and of rows
  int64_t outer[3], row;
  int64_t of(const int64_t* at) const {
    return at[0] * outer[0] + at[1] * outer[1] + at[2] * outer[2];
  }
};

// y = softmax(scale * q * k^T, masked) * v for each element of the outer axes. Elements of a row
// are neighbours; those of the mask are mask_column apart. Rows of k and v are multiplied by their
// scales, if there are any. The caller keeps the part before the pointers.
struct Attention {
  int64_t outer[3], m, t, d, e;
  Strides q_at, k_at, v_at, y_at, k_scales_at, v_scales_at, mask_at;
  int64_t mask_column;
  int64_t type, mask_kind;
  double scale, fill;
  int64_t threads;
  Fork fork;
  const float* q;
  const void *k, *v, *mask;
  const float *k_scales, *v_scales;
  float *y, *scratch;
};

// What is rotated: see popxl_native_rotate.
struct Rotation {
  int64_t size[5], d, pairs, halves;
  int64_t x_at[5], sin_at[3], cos_at[3];
};

constexpr int64_t CHUNK_ROWS = 768;  // rows of x that the scratch memory holds at once
constexpr int64_t INNER = 256;       // length of the sums between two visits of y
constexpr int64_t COLUMNS = 256;     // rows of w (columns of y) per task at most

#ifdef POPXL_X86

// Sixteen rows of w by eight columns, transposed: vector j gets column j of all sixteen.
#define POPXL_AVX2 __attribute__((target("avx2,fma,f16c"), always_inline)) inline
POPXL_AVX2 void transpose_16x8(const uint16_t* const* row, int64_t at, __m256i* out) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; ++i) {
    const auto* low = reinterpret_cast<const __m128i*>(row[i] + at);
    const auto* high = reinterpret_cast<const __m128i*>(row[i + 8] + at);
    a[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)),
                                   _mm_loadu_si128(high), 1);
  }
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[i + 4] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {  // b[2i], b[2i + 1] hold the same columns of neighbouring rows
    a[i] = _mm256_unpacklo_epi32(b[2 * i], b[2 * i + 1]);
    a[i + 4] = _mm256_unpackhi_epi32(b[2 * i], b[2 * i + 1]);
  }
  // a[0], a[1]: columns 0, 1; a[4], a[5]: 2, 3; a[2], a[3]: 4, 5; a[6], a[7]: 6, 7
  constexpr int ORDER[4] = {0, 4, 2, 6};
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = _mm256_unpacklo_epi64(a[ORDER[i]], a[ORDER[i] + 1]);
    out[2 * i + 1] = _mm256_unpackhi_epi64(a[ORDER[i]], a[ORDER[i] + 1]);
  }
}

namespace avx2 {
#define POPXL_SIMD POPXL_AVX2
#define POPXL_ENTRY __attribute__((target("avx2,fma,f16c")))
using Vector = __m256;
constexpr int LANES = 8;
constexpr int ATTEND_VECTORS = 8;
constexpr int TILE_ROWS = 6;  // times two vectors: 12 of 16 registers hold sums
constexpr int dot_columns(int rows) { return rows == 3 ? 4 : rows == 4 ? 3 : 2; }
POPXL_SIMD Vector zero() { return _mm256_setzero_ps(); }
POPXL_SIMD Vector load(const float* p) { return _mm256_loadu_ps(p); }
POPXL_SIMD Vector all(const float* p) { return _mm256_broadcast_ss(p); }
POPXL_SIMD void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
POPXL_SIMD Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
POPXL_SIMD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
POPXL_SIMD Vector widen(__m128i v, Half) { return _mm256_cvtph_ps(v); }
POPXL_SIMD Vector widen(__m128i v, Brain) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
template <class Type>
POPXL_SIMD Vector load_wide(const uint16_t* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), Type{});
}
template <class Type>
POPXL_SIMD void store_wide_16(float* p, __m256i v) {
  store(p, widen(_mm256_castsi256_si128(v), Type{}));
  store(p + 8, widen(_mm256_extracti128_si256(v, 1), Type{}));
}
POPXL_SIMD Vector load_octets(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
POPXL_SIMD float total(Vector v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
template <class Type>
POPXL_SIMD Vector load_as(const typename Type::Stored* p) {
  if constexpr (std::is_same_v<Type, Single>)
    return load(p);
  else if constexpr (std::is_same_v<Type, Octet>)
    return load_octets(p);
  else
    return load_wide<Type>(p);
}
template <class Type>
POPXL_SIMD Vector load_some(const typename Type::Stored* p, int64_t count) {
  typename Type::Stored end[LANES] = {};
  std::memcpy(end, p, count * sizeof(*p));
  return load_as<Type>(end);
}
#include "attention_loops.h"
#include "gemm_loops.h"
#undef POPXL_SIMD
#undef POPXL_ENTRY
}  // namespace avx2

namespace avx512 {
#define POPXL_TARGET target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#define POPXL_SIMD __attribute__((POPXL_TARGET, always_inline)) inline
#define POPXL_ENTRY __attribute__((POPXL_TARGET))
using Vector = __m512;
constexpr int LANES = 16;
constexpr int ATTEND_VECTORS = 16;
constexpr int TILE_ROWS = 12;  // times two vectors: 24 of 32 registers hold sums
constexpr int dot_columns(int rows) { return rows <= 2 ? rows : 4; }
POPXL_SIMD Vector zero() { return _mm512_setzero_ps(); }
POPXL_SIMD Vector load(const float* p) { return _mm512_loadu_ps(p); }
POPXL_SIMD Vector all(const float* p) { return _mm512_set1_ps(*p); }
POPXL_SIMD void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
POPXL_SIMD Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
POPXL_SIMD Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
POPXL_SIMD Vector widen(__m256i v, Half) { return _mm512_cvtph_ps(v); }
POPXL_SIMD Vector widen(__m256i v, Brain) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}
template <class Type>
POPXL_SIMD Vector load_wide(const uint16_t* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), Type{});
}
template <class Type>
POPXL_SIMD void store_wide_16(float* p, __m256i v) {
  store(p, widen(v, Type{}));
}
POPXL_SIMD Vector load_octets(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
POPXL_SIMD float total(Vector v) { return _mm512_reduce_add_ps(v); }
template <class Type>
POPXL_SIMD Vector load_as(const typename Type::Stored* p) {
  if constexpr (std::is_same_v<Type, Single>)
    return load(p);
  else if constexpr (std::is_same_v<Type, Octet>)
    return load_octets(p);
  else
    return load_wide<Type>(p);
}
template <class Type>
POPXL_SIMD Vector load_some(const typename Type::Stored* p, int64_t count) {
  const auto some = static_cast<__mmask16>((1u << count) - 1);
  if constexpr (std::is_same_v<Type, Single>)
    return _mm512_maskz_loadu_ps(some, p);
  else if constexpr (std::is_same_v<Type, Octet>)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(some, p)));
  else
    return widen(_mm256_maskz_loadu_epi16(some, p), Type{});
}
#include "attention_loops.h"
#include "gemm_loops.h"
#undef POPXL_SIMD
#undef POPXL_ENTRY
}  // namespace avx512

#endif  // POPXL_X86

struct Set {
  const char* name;
  bool (*here)();
  void (*dot)(const Problem&, bool brain);
  void (*tiles)(const Problem&, bool brain);
  int64_t (*scratch)(const Problem&);
  void (*attend)(const Attention&);
  int64_t (*room)(int64_t d, int64_t t);
};

// Best first.
const Set SETS[] = {
#ifdef POPXL_X86
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
     },
     avx512::dot_all, avx512::tiles_all, avx512::scratch_floats, avx512::attend_all, avx512::attend_room},
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     avx2::dot_all, avx2::tiles_all, avx2::scratch_floats, avx2::attend_all, avx2::attend_room},
#endif
    {nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr},
};

}  // namespace

extern "C" {

// Changes with the meaning of any function below; the caller compares it with its own.
__attribute__((visibility("default"))) int popxl_native_version() { return 5; }

// Name of instruction set i, best first, or null after the last one.
__attribute__((visibility("default"))) const char* popxl_native_set(int i) { return SETS[i].name; }

// Whether this processor has instruction set i.
__attribute__((visibility("default"))) int popxl_native_here(int i) { return SETS[i].here(); }

// Floats of scratch memory that popxl_native_tiles needs.
__attribute__((visibility("default"))) int64_t popxl_native_scratch(int set, int64_t m, int64_t n,
                                                                    int64_t k, int threads) {
  return SETS[set].scratch(
      Problem{m, n, k, nullptr, 0, nullptr, 0, nullptr, 0, nullptr, threads, nullptr});
}

// y = x * w^T by sums along the rows of w: for few rows of x. Rows are elements apart; `brain` says
// that w is bfloat16. A row of y does not depend on how many there are.
__attribute__((visibility("default"))) void popxl_native_dot(
    int set, int brain, int64_t m, int64_t n, int64_t k, const float* x, int64_t x_row,
    const uint16_t* w, int64_t w_row, float* y, int64_t y_row, int threads, Fork fork) {
  SETS[set].dot(Problem{m, n, k, x, x_row, w, w_row, y, y_row, nullptr, threads, fork}, brain != 0);
}

// The same by tiles of w widened to float32: for many rows of x.
__attribute__((visibility("default"))) void popxl_native_tiles(
    int set, int brain, int64_t m, int64_t n, int64_t k, const float* x, int64_t x_row,
    const uint16_t* w, int64_t w_row, float* y, int64_t y_row, float* scratch, int threads,
    Fork fork) {
  SETS[set].tiles(Problem{m, n, k, x, x_row, w, w_row, y, y_row, scratch, threads, fork},
                  brain != 0);
}

// Floats of scratch memory that popxl_native_attend needs for each thread.
__attribute__((visibility("default"))) int64_t popxl_native_room(int set, int64_t d, int64_t t) {
  return SETS[set].room(d, t);
}

// Attention: all of `layout` but its pointers is given.
__attribute__((visibility("default"))) void popxl_native_attend(int set, const Attention* layout,
                                                                const float* q, const void* k,
                                                                const void* v, const void* mask,
                                                                const float* k_scales,
                                                                const float* v_scales, float* y,
                                                                float* scratch) {
  Attention p = *layout;
  p.q = q, p.k = k, p.v = v, p.mask = mask, p.y = y, p.scratch = scratch;
  p.k_scales = k_scales, p.v_scales = v_scales;
  SETS[set].attend(p);
}

// Rotary positions. x is (a, b, s, n, c, d), of which pairs of the first 2 * pairs channels are
// rotated and those behind are copied; pairs are neighbours or, with `halves`, `pairs` apart. sin and
// cos have strides for a, b and s. y is (c, a, b, s, n, d), contiguous.
__attribute__((visibility("default"))) void popxl_native_rotate(const Rotation* layout,
                                                                const float* x, const float* sin,
                                                                const float* cos, float* y) {
  const Rotation& p = *layout;
  const int64_t* size = p.size;
  const int64_t apart = p.halves ? p.pairs : 1, next = p.halves ? 1 : 2;
  const int64_t rows = size[0] * size[1] * size[2];
  for (int64_t c = 0; c < size[4]; ++c)
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t s = row % size[2], b = row / size[2] % size[1], a = row / size[2] / size[1];
      const float* sines = sin + a * p.sin_at[0] + b * p.sin_at[1] + s * p.sin_at[2];
      const float* cosines = cos + a * p.cos_at[0] + b * p.cos_at[1] + s * p.cos_at[2];
      const float* in = x + a * p.x_at[0] + b * p.x_at[1] + s * p.x_at[2] + c * p.x_at[4];
      for (int64_t n = 0; n < size[3]; ++n, in += p.x_at[3], y += p.d) {
        for (int64_t i = 0; i < p.pairs; ++i) {
          const float first = in[i * next], second = in[i * next + apart];
          y[i * next] = first * cosines[i] - second * sines[i];
          y[i * next + apart] = second * cosines[i] + first * sines[i];
        }
        std::memcpy(y + 2 * p.pairs, in + 2 * p.pairs, (p.d - 2 * p.pairs) * sizeof(float));
      }
    }
}
}
