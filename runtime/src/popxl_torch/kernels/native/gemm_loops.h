// The loops of gemm.cpp for one instruction set. Included inside a namespace that has defined
// POPXL_SIMD, POPXL_ENTRY, Vector, LANES, TILE_ROWS, dot_columns and the operations on vectors.

// All loops over a fixed number of rows or columns are unrolled: an index that is no constant, even
// one outside the hot loop, would make the compiler keep the sums in memory.

// ---- few rows of x: sums along the rows of w ------------------------------------------------

constexpr int MOST_ROWS = 6;            // rows of x per pass over a piece of w
constexpr int DOT_COLUMNS = 24;         // rows of w per piece: a multiple of 2, 3 and 4
constexpr int64_t DOT_INNER = 1024;     // columns of x that stay in the first-level cache
constexpr int64_t DOT_AHEAD = 2048;     // elements of a row of w between a prefetch and its use
constexpr int64_t TASK_SIZE = 1 << 18;  // elements of w that a thread reads on end

// Adds to the sums of R rows of x with C rows of w, one vector of sums per pair. However many rows
// there are, those vectors add up the same products in the same order, so that the result for a row
// of x is the same in any company.
template <class Type, int R, int C>
POPXL_SIMD void dot_block(const Problem& p, const float* x, const uint16_t* w, const uint16_t* next,
                          int64_t length, bool first, float* sums) {
  Vector sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      sum[r][c] = first ? zero() : load(sums + (r * DOT_COLUMNS + c) * LANES);
  for (int64_t j = 0; j < length; j += LANES) {
    Vector wide[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      wide[c] = load_wide<Type>(w + c * p.w_row + j);
      prefetch<R>(next + c * p.w_row + j);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector v = load(x + r * p.x_row + j);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = multiply_add(v, wide[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + (r * DOT_COLUMNS + c) * LANES, sum[r][c]);
}

// The last k % LANES products, and the total, of one row of x and one row of w.
template <class Type>
POPXL_SIMD float dot_end(const float* x, const uint16_t* w, int64_t rest, const float* sums) {
  Vector sum = load(sums);
  if (rest) {
    float x_end[LANES] = {};
    uint16_t w_end[LANES] = {};
    std::memcpy(x_end, x, rest * sizeof(float));
    std::memcpy(w_end, w, rest * sizeof(uint16_t));
    sum = multiply_add(load(x_end), load_wide<Type>(w_end), sum);
  }
  return total(sum);
}

// R rows of x with rows [column, end) of w, at most DOT_COLUMNS.
//
// One or two rows of x wait for w only, which is read fastest from end to end. More rows take a
// stretch of all rows of w at a time, so that theirs of x are in the first-level cache.
template <class Type, int R>
POPXL_ENTRY void dot_rows(const Problem& p, int64_t row, int64_t column, int64_t end) {
  constexpr int C = dot_columns(R);
  constexpr int64_t stretch = R <= 2 ? DOT_AHEAD : DOT_INNER;
  alignas(64) float sums[R * DOT_COLUMNS * LANES];
  const float* x = p.x + row * p.x_row;
  const uint16_t* w = p.w + column * p.w_row;
  const int64_t columns = end - column, whole = p.k - p.k % LANES;
  const int64_t group = R <= 2 ? C : columns;
  for (int64_t c = 0, last; c < columns; c = last) {
    last = least(columns, c + group);
    for (int64_t j = 0; j == 0 || j < whole; j += stretch) {
      const int64_t length = least(stretch, whole - j);
      const bool ends = j + stretch >= whole;
      const uint16_t* then = w + (ends ? last * p.w_row : c * p.w_row + j + stretch);
      int64_t i = c;
      for (; i + C <= last; i += C) {
        const uint16_t* at = w + i * p.w_row + j;
        const uint16_t* next = i + C < last ? at + C * p.w_row : then;
        dot_block<Type, R, C>(p, x + j, at, next, length, j == 0, sums + i * LANES);
      }
      for (; i < last; ++i) {
        const uint16_t* at = w + i * p.w_row + j;
        dot_block<Type, R, 1>(p, x + j, at, at, length, j == 0, sums + i * LANES);
      }
    }
  }
  for (int64_t c = 0; c < columns; ++c)
    for (int r = 0; r < R; ++r)
      p.y[(row + r) * p.y_row + column + c] =
          dot_end<Type>(x + r * p.x_row + whole, w + c * p.w_row + whole, p.k - whole,
                        sums + (r * DOT_COLUMNS + c) * LANES);
}

template <class Type>
void dot_type(const Problem& p) {
  using Rows = void (*)(const Problem&, int64_t, int64_t, int64_t);
  constexpr Rows BY_ROWS[MOST_ROWS] = {dot_rows<Type, 1>, dot_rows<Type, 2>, dot_rows<Type, 3>,
                                       dot_rows<Type, 4>, dot_rows<Type, 5>, dot_rows<Type, 6>};
  const int64_t groups = parts(p.m, MOST_ROWS);
  const int64_t width = least(TASK_SIZE / most(p.k, 1), parts(p.n, 4 * p.threads));
  const int64_t pieces = most(width / DOT_COLUMNS, 1), all_pieces = parts(p.n, DOT_COLUMNS);
  parallel(p, parts(all_pieces, pieces), [&](int64_t task, int64_t) {
    const int64_t last = least(all_pieces, (task + 1) * pieces);
    for (int64_t piece = task * pieces; piece < last; ++piece) {
      const int64_t column = piece * DOT_COLUMNS, end = least(p.n, column + DOT_COLUMNS);
      for (int64_t g = 0; g < groups; ++g) {  // after the first group the piece is in a cache
        const int64_t row = g * p.m / groups, rows = (g + 1) * p.m / groups - row;
        BY_ROWS[rows - 1](p, row, column, end);
      }
    }
  });
}

void dot_all(const Problem& p, bool brain) { brain ? dot_type<Brain>(p) : dot_type<Half>(p); }

// ---- many rows of x: tiles of w widened to float32 ------------------------------------------
//
// x is packed once as panels of up to TILE_ROWS rows, in which the values of one column are
// neighbours. A task takes up to COLUMNS rows of w, and of those INNER columns at a time: it widens
// and transposes them to panels of two vectors, small enough for the second-level cache, and
// multiplies each panel of x, which then is in the first-level cache, with all of them.

constexpr int TILE_COLUMNS = 2 * LANES;

struct Panels {  // of one chunk of x
  int64_t rows, count;
  const float* data;
  int64_t start(int64_t i) const { return i * rows / count; }
};

POPXL_ENTRY void pack_x(const Problem& p, int64_t row, int64_t rows, int64_t inner, int64_t length,
                        float* out) {
  for (int r = 0; r < TILE_ROWS; ++r) {
    const float* x = p.x + (row + least(r, rows - 1)) * p.x_row + inner;
    for (int64_t j = 0; j < length; ++j) out[j * TILE_ROWS + r] = x[j];
  }
}

// Rows [column, column + TILE_COLUMNS) of w, those beyond n as zeros.
template <class Type>
POPXL_SIMD void pack_w(const Problem& p, int64_t column, int64_t inner, int64_t length,
                       float* out) {
  static const uint16_t NOTHING[INNER + 16] = {};
  for (int half = 0; half < TILE_COLUMNS; half += 16) {
    const uint16_t* row[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t at = column + half + i;
      row[i] = at < p.n ? p.w + at * p.w_row + inner : NOTHING;
    }
    int64_t j = 0;
    for (; j + 8 <= length; j += 8) {
      __m256i turned[8];
      transpose_16x8(row, j, turned);
      for (int i = 0; i < 8; ++i)
        store_wide_16<Type>(out + (j + i) * TILE_COLUMNS + half, turned[i]);
    }
    if (const int64_t rest = length - j) {
      uint16_t ends[16][8] = {};
      for (int i = 0; i < 16; ++i) {
        std::memcpy(ends[i], row[i] + j, rest * sizeof(uint16_t));
        row[i] = ends[i];
      }
      __m256i turned[8];
      transpose_16x8(row, 0, turned);
      for (int64_t i = 0; i < rest; ++i)
        store_wide_16<Type>(out + (j + i) * TILE_COLUMNS + half, turned[i]);
    }
  }
}

// R rows by two vectors of y, the sums over `length` products added to y or, at first, stored.
template <int R>
POPXL_ENTRY void tile(const float* x, const float* w, int64_t length, bool first, float* y,
                      int64_t y_row, int64_t columns) {
  Vector sum[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = zero();
  for (int64_t j = 0; j < length; ++j) {
    const Vector left = load(w), right = load(w + LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vector v = all(x + r);
      sum[r][0] = multiply_add(v, left, sum[r][0]);
      sum[r][1] = multiply_add(v, right, sum[r][1]);
    }
    x += TILE_ROWS;
    w += TILE_COLUMNS;
  }
  if (columns == TILE_COLUMNS) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      float* out = y + r * y_row;
      store(out, first ? sum[r][0] : add(load(out), sum[r][0]));
      store(out + LANES, first ? sum[r][1] : add(load(out + LANES), sum[r][1]));
    }
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float whole[TILE_COLUMNS];
    store(whole, sum[r][0]);
    store(whole + LANES, sum[r][1]);
    float* out = y + r * y_row;
    for (int64_t c = 0; c < columns; ++c) out[c] = first ? whole[c] : out[c] + whole[c];
  }
}

using Tile = void (*)(const float*, const float*, int64_t, bool, float*, int64_t, int64_t);

template <int... R>
constexpr Tile tile_of(int rows, std::integer_sequence<int, R...>) {
  constexpr Tile BY_ROWS[] = {tile<R + 1>...};
  return BY_ROWS[rows - 1];
}

// Rows of w per task: few enough that no thread is left without one.
inline int64_t task_columns(const Problem& p) {
  const int64_t fair = parts(p.n, 4 * p.threads);
  return least(COLUMNS, most(parts(fair, TILE_COLUMNS), 1) * TILE_COLUMNS);
}

int64_t scratch_floats(const Problem& p) {
  const int64_t panels = parts(least(p.m, CHUNK_ROWS), TILE_ROWS) + 1;
  return panels * TILE_ROWS * p.k + p.threads * INNER * COLUMNS + 64;
}

template <class Type>
POPXL_ENTRY void tiles_task(const Problem& p, const Panels& panels, int64_t column, float* wide) {
  const int64_t end = least(p.n, column + task_columns(p));
  for (int64_t inner = 0; inner < p.k; inner += INNER) {
    const int64_t length = least(INNER, p.k - inner);
    for (int64_t c = column; c < end; c += TILE_COLUMNS)
      pack_w<Type>(p, c, inner, length, wide + (c - column) * INNER);
    for (int64_t i = 0; i < panels.count; ++i) {
      const int64_t row = panels.start(i), rows = panels.start(i + 1) - row;
      const Tile multiply = tile_of(rows, std::make_integer_sequence<int, TILE_ROWS>{});
      const float* x = panels.data + (i * p.k + inner) * TILE_ROWS;
      for (int64_t c = column; c < end; c += TILE_COLUMNS)
        multiply(x, wide + (c - column) * INNER, length, inner == 0, p.y + row * p.y_row + c,
                 p.y_row, least(TILE_COLUMNS, end - c));
    }
  }
}

template <class Type>
void tiles_type(Problem p) {
  const int64_t chunks = parts(p.m, CHUNK_ROWS), all_rows = p.m;
  const float* x = p.x;
  float* y = p.y;
  // At the start of a cache line, and so are all panels.
  auto address = reinterpret_cast<std::uintptr_t>(p.scratch);
  float* wide = p.scratch + (64 - address % 64) % 64 / sizeof(float);
  float* packed = wide + p.threads * INNER * COLUMNS;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * all_rows / chunks;
    p.m = (chunk + 1) * all_rows / chunks - first;
    p.x = x + first * p.x_row;
    p.y = y + first * p.y_row;
    const Panels panels{p.m, parts(p.m, TILE_ROWS), packed};
    parallel(p, panels.count, [&](int64_t i, int64_t) {
      const int64_t row = panels.start(i), rows = panels.start(i + 1) - row;
      for (int64_t inner = 0; inner < p.k; inner += INNER)
        pack_x(p, row, rows, inner, least(INNER, p.k - inner),
               packed + (i * p.k + inner) * TILE_ROWS);
    });
    const int64_t width = task_columns(p);
    parallel(p, parts(p.n, width), [&](int64_t task, int64_t worker) {
      tiles_task<Type>(p, panels, task * width, wide + worker * INNER * COLUMNS);
    });
  }
}

void tiles_all(const Problem& p, bool brain) {
  brain ? tiles_type<Brain>(p) : tiles_type<Half>(p);
}
