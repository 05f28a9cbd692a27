// Packing: each lane of a tile holds a rectangle of an NCHW tensor; outputs
// are unpacked likewise. The kernels see no padding, strides or tails.
#pragma once

#include "walk.h"

// Stores a vector, with zeros in lanes whose column or row is outside.
template <bool WHOLE>
static inline void store_inside(vec8 v, const Window& w, int64_t r, int c,
                                int l, float* tile) {
  if (!WHOLE)
    v = (vec8)((lanes8)v & load_any<lanes8>((const float*)&w.columns[c] + l) &
               load_any<lanes8>((const float*)&w.lines[r] + l));
  store_any(tile + c * LANES + l, v);
}

// Packs eight lanes that read neighbouring floats: a shuffle, no transpose.
template <int COLUMNS, bool WHOLE>
static inline void pack_run(const float* x, const Window& w, int64_t r, int l,
                            float* tile) {
#pragma GCC unroll 4
  for (int c = 0; c < COLUMNS; c += 2) {
    const vec8 a = load_any<vec8>(x + c), b = load_any<vec8>(x + c + 8);
    store_inside<WHOLE>(SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14), w, r, c, l,
                        tile);
    if (c + 1 < COLUMNS)
      store_inside<WHOLE>(SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15), w, r,
                          c + 1, l, tile);
  }
}

template <int STEP>
static inline vec4 load_columns(const float* p) {
  const vec4 a = load_any<vec4>(p);
  return STEP == 1 ? a : SHUFFLE(a, load_any<vec4>(p + 4), 0, 2, 4, 6);
}

// Packs rows of COLUMNS vectors: eight lanes are loaded along the row and
// transposed, unless they are one run.
template <int COLUMNS, int STEP, bool WHOLE>
static void pack_rows(const float* x, const Window& w, float* tile) {
  for (int64_t r = 0; r < w.rows;
       ++r, x += w.row_step, tile += COLUMNS * LANES) {
#pragma GCC unroll 2
    for (int l = 0; l < LANES; l += 8) {
      if (STEP == 1 && w.run[l / 8]) {
        pack_run<COLUMNS, WHOLE>(x + w.first[l], w, r, l, tile);
        continue;
      }
#pragma GCC unroll 2
      for (int c = 0; c < COLUMNS; c += 4) {
        vec8 v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          v[j] = join(load_columns<STEP>(x + w.first[l + j] + c * STEP),
                      load_columns<STEP>(x + w.first[l + j + 4] + c * STEP));
        transpose4(v);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j)
          if (c + j < COLUMNS) store_inside<WHOLE>(v[j], w, r, c + j, l, tile);
      }
    }
  }
}

template <int COLUMNS>
static void pack_scattered(const float* x, const Window& w, float* tile) {
  for (int64_t r = 0; r < w.rows; ++r)
    for (int c = 0; c < COLUMNS; ++c, tile += LANES)
      for (int l = 0; l < LANES; ++l)
        tile[l] = w.columns[c][l] & w.lines[r][l]
                      ? x[w.first[l] + r * w.row_step + c * w.col_step]
                      : 0;
}

// Packs one channel of a window into rows x COLUMNS vectors.
template <int COLUMNS>
static void pack(const float* x, int64_t channel, const Window& w,
                 float* tile) {
  x += channel * w.plane;
  if (!w.readable(channel))
    pack_scattered<COLUMNS>(x, w, tile);
  else if (w.col_step == 2)
    w.whole ? pack_rows<COLUMNS, 2, true>(x, w, tile)
            : pack_rows<COLUMNS, 2, false>(x, w, tile);
  else
    w.whole ? pack_rows<COLUMNS, 1, true>(x, w, tile)
            : pack_rows<COLUMNS, 1, false>(x, w, tile);
}

// Output addresses of a group.
struct Target {
  ptrdiff_t first[LANES];  // corner of the patch, in filter 0
  ptrdiff_t row_step, col_step, plane;
  int rows[LANES], cols[LANES];  // of the patch inside the output
  // For eight lanes: the patches are inside and columns adjoin; lanes adjoin.
  bool whole[LANES / 8], run[LANES / 8];
};

template <int ROWS, int COLS>
static Target target_of(const Sizes& s, const Walk& walk, const Group& group) {
  Target t;
  t.row_step = walk.h.out_step * s.out_w;
  t.col_step = walk.w.out_step;
  t.plane = s.out_h * s.out_w;
  for (int l = 0; l < LANES; ++l) {
    const int64_t y = walk.h.out_first + walk.h.out_step * group.row[l];
    const int64_t x = walk.w.out_first + walk.w.out_step * group.col[l];
    t.first[l] = (group.image[l] * s.filters * s.out_h + y) * s.out_w + x;
    const int64_t down = walk.h.count - group.row[l];
    const int64_t across = walk.w.count - group.col[l];
    t.rows[l] = group.live[l] ? (int)std::min<int64_t>(ROWS, down) : 0;
    t.cols[l] = (int)std::min<int64_t>(COLS, across);
  }
  for (int l = 0; l < LANES; l += 8) {
    bool &whole = t.whole[l / 8], &run = t.run[l / 8];
    whole = COLS == 2 && t.col_step == 1;
    for (int i = 0; i < 8; ++i)
      whole &= t.rows[l + i] == ROWS && t.cols[l + i] == COLS;
    run = whole;
    for (int i = 1; i < 8; ++i) run &= t.first[l + i] == t.first[l] + COLS * i;
  }
  return t;
}

struct Epilogue {
  const float* bias;      // per filter, or null
  const float* residual;  // of the output's shape, or null
  bool relu;
};

// Unpacks ROWS x COLS vectors to a filter's outputs, with the epilogue.
template <int ROWS, int COLS>
static void unpack(const float* tile, const Target& t, int64_t filter,
                   const Epilogue& e, float* y) {
  y += filter * t.plane;
  const float* residual = e.residual ? e.residual + filter * t.plane : nullptr;
  for (int l = 0; l < LANES; l += 8) {
    const float* from = tile + l;
    if (t.run[l / 8]) {
      for (int r = 0; r < ROWS; ++r, from += 2 * LANES) {
        const vec8 a = load_any<vec8>(from), b = load_any<vec8>(from + LANES);
        const vec8 halves[2] = {SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11),
                                SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)};
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const ptrdiff_t p = t.first[l] + r * t.row_step + 8 * i;
          vec8 v = halves[i];
          if (residual) v += load_any<vec8>(residual + p);
          store_any(y + p, e.relu ? relu(v) : v);
        }
      }
    } else if (t.whole[l / 8]) {
      for (int r = 0; r < ROWS; ++r, from += 2 * LANES)
        for (int k = 0; k < 8; k += 4) {
          const vec4 a = load_any<vec4>(from + k);
          const vec4 b = load_any<vec4>(from + LANES + k);
          const vec4 pairs[2] = {SHUFFLE(a, b, 0, 4, 1, 5),
                                 SHUFFLE(a, b, 2, 6, 3, 7)};
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            const ptrdiff_t* first = t.first + l + k + 2 * i;
            const ptrdiff_t p = first[0] + r * t.row_step;
            const ptrdiff_t q = first[1] + r * t.row_step;
            vec4 v = pairs[i];
            if (residual) v += load_pairs(residual + p, residual + q);
            store_pairs(y + p, y + q, e.relu ? relu(v) : v);
          }
        }
    } else {
      for (int i = 0; i < 8; ++i) {
        if (!residual && !e.relu && t.rows[l + i] == ROWS &&
            t.cols[l + i] == COLS) {
          float* to = y + t.first[l + i];
#pragma GCC unroll 7
          for (int r = 0; r < ROWS; ++r, to += t.row_step)
#pragma GCC unroll 2
            for (int c = 0; c < COLS; ++c)
              to[c * t.col_step] = from[(r * COLS + c) * LANES + i];
          continue;
        }
        for (int r = 0; r < t.rows[l + i]; ++r)
          for (int c = 0; c < t.cols[l + i]; ++c) {
            const ptrdiff_t p =
                t.first[l + i] + r * t.row_step + c * t.col_step;
            float v = from[(r * COLS + c) * LANES + i];
            if (residual) v += residual[p];
            y[p] = e.relu && v < 0 ? 0 : v;
          }
      }
    }
  }
}
