// Packing: rectangles of an NCHW tensor -> tiles with a lane for each, and
// outputs back. Padding, strides and tails end here.
#pragma once

#include "walk.h"

template <int STEP, bool WHOLE>
static inline vec4 load_columns(const float* p, const mask4* inside) {
  const vec4 a = WHOLE ? load_any<vec4>(p) : load_masked(p, inside[0]);
  if (STEP == 1) return a;
  const vec4 b = WHOLE ? load_any<vec4>(p + 4) : load_masked(p + 4, inside[1]);
  return SHUFFLE(a, b, 0, 2, 4, 6);
}

// Rows of COLUMNS vectors. Eight lanes at a time are loaded along the row and
// transposed.
template <int COLUMNS, int STEP, bool WHOLE>
static void pack_rows(const float* x, const Window& w, float* tile) {
  constexpr int LOADS = (COLUMNS + 3) / 4 * STEP;
  const mask4* inside = w.inside.data();
  for (int64_t r = 0; r < w.rows; ++r, x += w.row_step) {
#pragma GCC unroll 2
    for (int l = 0; l < LANES; l += 8)
#pragma GCC unroll 2
      for (int c = 0; c < COLUMNS; c += 4) {
        vec8 v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          const int at = (l + j) * LOADS + c / 4 * STEP;
          v[j] =
              join(load_columns<STEP, WHOLE>(x + w.first[l + j] + c * STEP,
                                             inside + at),
                   load_columns<STEP, WHOLE>(x + w.first[l + j + 4] + c * STEP,
                                             inside + at + 4 * LOADS));
        }
        transpose4(v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          if (c + j < COLUMNS)
            memcpy(tile + (c + j) * LANES + l, &v[j], sizeof v[j]);
      }
    tile += COLUMNS * LANES;
    inside += LANES * LOADS;
  }
}

template <int COLUMNS>
static void pack_scattered(const float* x, const Window& w, float* tile) {
  for (int64_t r = 0; r < w.rows; ++r)
    for (int c = 0; c < COLUMNS; ++c, tile += LANES)
      for (int l = 0; l < LANES; ++l) {
        const mask4& inside = w.inside[(r * LANES + l) * w.loads + c / 4];
        tile[l] = inside[c % 4]
                      ? x[w.first[l] + r * w.row_step + c * w.col_step]
                      : 0;
      }
}

// One plane of one window -> rows x COLUMNS vectors.
template <int COLUMNS>
static void pack(const float* x, const Window& w, float* tile) {
  if (w.col_step > 2)
    pack_scattered<COLUMNS>(x, w, tile);
  else if (w.col_step == 2)
    w.whole ? pack_rows<COLUMNS, 2, true>(x, w, tile)
            : pack_rows<COLUMNS, 2, false>(x, w, tile);
  else
    w.whole ? pack_rows<COLUMNS, 1, true>(x, w, tile)
            : pack_rows<COLUMNS, 1, false>(x, w, tile);
}

// Where the outputs of a group go.
struct Target {
  ptrdiff_t first[LANES];  // of the patch's corner, in filter 0
  ptrdiff_t row_step, col_step, plane;
  int rows[LANES], cols[LANES];  // of the patch that are inside
  bool whole;                    // all of them, and columns are neighbours
};

template <int COLS>
static Target target_of(const Sizes& s, const Walk& walk, const Group& group) {
  Target t;
  t.row_step = walk.h.out_step * s.out_w;
  t.col_step = walk.w.out_step;
  t.plane = s.out_h * s.out_w;
  t.whole = t.col_step == 1;
  for (int l = 0; l < LANES; ++l) {
    const int64_t y = walk.h.out_first + walk.h.out_step * group.row[l];
    const int64_t x = walk.w.out_first + walk.w.out_step * group.col[l];
    t.first[l] = (group.image[l] * s.filters * s.out_h + y) * s.out_w + x;
    const int64_t down = walk.h.count - group.row[l];
    const int64_t across = walk.w.count - group.col[l];
    t.rows[l] = group.live[l] ? (int)std::min<int64_t>(ROWS, down) : 0;
    t.cols[l] = (int)std::min<int64_t>(COLS, across);
    t.whole &= t.rows[l] == ROWS && t.cols[l] == COLS;
  }
  return t;
}

struct Epilogue {
  const float* bias;      // a number a filter, or null
  const float* residual;  // of the output's shape, added; or null
  bool relu;
};

// One filter's ROWS x COLS vectors -> its outputs, with the epilogue.
template <int COLS>
static void unpack(const float* tile, const Target& t, int64_t filter,
                   const Epilogue& e, float* y) {
  y += filter * t.plane;
  const float* residual = e.residual ? e.residual + filter * t.plane : nullptr;
  if (COLS == 2 && t.whole) {
    for (int r = 0; r < ROWS; ++r, tile += 2 * LANES)
      for (int l = 0; l < LANES; l += 4) {
        const vec4 a = load_any<vec4>(tile + l);
        const vec4 b = load_any<vec4>(tile + LANES + l);
        const vec4 pairs[2] = {SHUFFLE(a, b, 0, 4, 1, 5),
                               SHUFFLE(a, b, 2, 6, 3, 7)};
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const ptrdiff_t p = t.first[l + 2 * i] + r * t.row_step;
          const ptrdiff_t q = t.first[l + 2 * i + 1] + r * t.row_step;
          vec4 v = pairs[i];
          if (residual) v += load_pairs(residual + p, residual + q);
          if (e.relu) v = relu(v);
          store_pairs(y + p, y + q, v);
        }
      }
    return;
  }
  for (int l = 0; l < LANES; ++l)
    for (int r = 0; r < t.rows[l]; ++r)
      for (int c = 0; c < t.cols[l]; ++c) {
        const ptrdiff_t p = t.first[l] + r * t.row_step + c * t.col_step;
        float v = tile[(r * COLS + c) * LANES + l];
        if (residual) v += residual[p];
        y[p] = e.relu && v < 0 ? 0 : v;
      }
}
