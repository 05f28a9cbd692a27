// Addresses that the lanes of a group read and write.
//
// A lane is a patch of ROWS x COLS outputs of one image; LANES patches are a
// group, the unit of work. A walk is a set of outputs in regular steps, with
// the inputs of each tap. geometry.py turns convolutions of any stride,
// dilation and padding, and input gradients, into walks.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

constexpr int MAX_ROWS = 7;  // of a patch; divides 7, 14, 28 and 56
constexpr int MAX_PHASES = 7;
constexpr int MAX_COLUMNS = 8;  // of a packed tile

// Output i of an axis is at out_first + out_step * i. Its tap with a phase and
// a shift reads in_first[phase] + in_step * (i + shift).
struct Axis {
  int64_t out_first, out_step, count, in_step, phases, in_first[MAX_PHASES];
};

struct Walk {
  Axis h, w;
};

// A tensor of (images, channels, height, width).
struct Shape {
  int64_t images, channels, height, width;
};

struct Sizes {
  int64_t images, channels, in_h, in_w, filters, out_h, out_w;
  int64_t tile_rows;  // input rows of a patch of MAX_ROWS
  int64_t block;      // planes (phase x channel) that fit the L1 cache
  int64_t paired;     // filters 2 i and 2 i + 1 share their places
  int64_t threads;

  Shape inputs() const { return {images, channels, in_h, in_w}; }
  Shape outputs() const { return {images, filters, out_h, out_w}; }
  int64_t planes(const Walk& walk) const {
    return channels * walk.h.phases * walk.w.phases;
  }
  // Filters that run together with filter k: two, but for an odd last one.
  int64_t together(int64_t k) const {
    return paired && k + 1 < filters ? 2 : 1;
  }
  // Number of filters of a part, without cutting a pair.
  int64_t whole_pairs(int64_t some) const { return some + (some & paired); }
};

// CSR by blocks of planes: filter k has the nonzeros row[b * filters + k] to
// row[b * filters + k + 1] in block b. The nonzeros of a pair alternate: one
// of its first filter, one of its second at the same place.
struct Nonzeros {
  const int32_t* row;
  const uint16_t* position;  // in the packed tile, counted in vectors
  const float* value;
};

struct Group {
  int64_t image[LANES], row[LANES], col[LANES];
  bool live[LANES];  // the last group may have idle lanes
};

template <int ROWS, int COLS>
static int64_t count_groups(const Sizes& s, const Walk& walk) {
  const int64_t down = (walk.h.count + ROWS - 1) / ROWS;
  const int64_t across = (walk.w.count + COLS - 1) / COLS;
  return (s.images * down * across + LANES - 1) / LANES;
}

template <int ROWS, int COLS>
static Group group_at(const Sizes& s, const Walk& walk, int64_t index) {
  const int64_t down = (walk.h.count + ROWS - 1) / ROWS;
  const int64_t across = (walk.w.count + COLS - 1) / COLS;
  const int64_t patches = s.images * down * across;
  Group group;
  for (int l = 0; l < LANES; ++l) {
    const int64_t patch = index * LANES + l;
    group.live[l] = patch < patches;
    const int64_t p = std::min(patch, patches - 1);
    group.image[l] = p / (down * across);
    group.row[l] = p / across % down * ROWS;
    group.col[l] = p % across * COLS;
  }
  return group;
}

// Rectangle of every lane in a tensor of (images, channels, h, w). Elements
// outside the tensor (padding, tails) are packed as zeros.
struct Window {
  ptrdiff_t first[LANES];  // corner of the rectangle, in channel 0
  ptrdiff_t row_step, plane;
  int64_t col_step, rows;
  lanes columns[MAX_COLUMNS];  // all ones if the lane's column is inside
  std::vector<lanes> lines;    // all ones if its row is inside
  bool whole;                  // all columns and rows are inside
  bool any;                    // any element is inside
  bool run[LANES / 8];         // eight lanes two columns apart
  ptrdiff_t lowest, highest;   // range of loads in channel 0
  ptrdiff_t total;             // floats of the tensor

  // True if loads past the borders of rows and planes stay in the tensor.
  bool readable(int64_t channel) const {
    return col_step <= 2 && lowest + channel * plane >= 0 &&
           highest + channel * plane <= total;
  }
};

static void set_window(Window& window, const Group& group, const Shape& shape,
                       int64_t first_h, int64_t step_h, int64_t first_w,
                       int64_t step_w, int64_t rows, int columns) {
  window.row_step = step_h * shape.width;
  window.plane = shape.height * shape.width;
  window.col_step = step_w;
  window.rows = rows;
  window.total = shape.images * shape.channels * window.plane;
  window.lowest = window.total;
  window.highest = 0;
  window.whole = true;
  window.any = false;
  window.lines.resize(rows);
  const int64_t loaded = (columns + 3) / 4 * 4 * step_w;
  for (int l = 0; l < LANES; ++l) {
    bool column = false, line = false;
    const int64_t y = first_h + step_h * group.row[l];
    const int64_t x = first_w + step_w * group.col[l];
    window.first[l] =
        (group.image[l] * shape.channels * shape.height + y) * shape.width + x;
    window.lowest = std::min(window.lowest, window.first[l]);
    window.highest =
        std::max<ptrdiff_t>(window.highest, window.first[l] + loaded +
                                                (rows - 1) * window.row_step);
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t at = x + step_w * c;
      const bool inside = at >= 0 && at < shape.width;
      window.columns[c][l] = -inside;
      window.whole &= inside;
      column |= inside;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = y + step_h * r;
      const bool inside = group.live[l] && at >= 0 && at < shape.height;
      window.lines[r][l] = -inside;
      window.whole &= inside;
      line |= inside;
    }
    window.any |= column && line;
  }
  for (int l = 0; l < LANES; l += 8) {
    bool& run = window.run[l / 8];
    run = step_w == 1;
    for (int i = 1; i < 8; ++i)
      run &= window.first[l + i] == window.first[l] + 2 * i;
  }
}
