// Where the lanes of a group read and write.
//
// A lane is a patch of 7 x COLS outputs of one image; LANES patches make a
// group, the unit of work. A walk is a set of outputs in regular steps, and
// says for each which inputs its taps see. The host (geometry.py) turns a
// convolution of any stride and dilation, or the gradient of its input, into
// walks; nothing here knows of strides, dilations or paddings.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

constexpr int ROWS = 7;  // of a patch; 7, 14, 28 and 56 are multiples
constexpr int MAX_PHASES = 7;

// Output i of an axis lies at out_first + out_step * i. Its tap of a phase
// and a shift sees in_first[phase] + in_step * (i + shift).
struct Axis {
  int64_t out_first, out_step, count, in_step, phases, in_first[MAX_PHASES];
};

struct Walk {
  Axis h, w;
};

struct Sizes {
  int64_t images, channels, in_h, in_w, filters, out_h, out_w;
  int64_t tile_rows;  // rows of inputs that a patch of 7 rows sees
  int64_t block;      // planes (channel x phase) that fit the L1 cache
  int64_t threads;

  int64_t planes(const Walk& walk) const {
    return channels * walk.h.phases * walk.w.phases;
  }
};

// CSR of one block of planes after the other: the nonzeros of filter k in
// block b are row[b * filters + k] .. row[b * filters + k + 1].
struct Nonzeros {
  const int32_t* row;
  const uint16_t* position;  // in the packed tile, in vectors
  const float* value;
};

struct Group {
  int64_t image[LANES], row[LANES], col[LANES];
  bool live[LANES];  // the last group may have lanes to spare
};

template <int COLS>
static int64_t count_groups(const Sizes& s, const Walk& walk) {
  const int64_t down = (walk.h.count + ROWS - 1) / ROWS;
  const int64_t across = (walk.w.count + COLS - 1) / COLS;
  return (s.images * down * across + LANES - 1) / LANES;
}

template <int COLS>
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

// The rectangle of every lane in a tensor of (images, channels, h, w), and
// which of it lies inside: the rest (padding, tails) is packed as zeros.
struct Window {
  ptrdiff_t first[LANES];  // of the rectangle's corner, in channel 0
  ptrdiff_t row_step, plane;
  int64_t col_step, rows, loads;  // loads of 4 floats for a row of a lane
  bool whole;                     // all that is loaded lies inside
  std::vector<mask4> inside;      // [row][lane][load]
};

// `columns` are those stored, at most 8. Columns that are 1 or 2 apart are
// loaded by fours, others one by one.
static void look(Window& window, const Group& group, int64_t channels,
                 int64_t height, int64_t width, int64_t first_h,
                 int64_t step_h, int64_t first_w, int64_t step_w, int64_t rows,
                 int columns) {
  const int64_t step = step_w <= 2 ? 1 : step_w;
  const int64_t loads = (columns + 3) / 4 * (step_w <= 2 ? step_w : 1);
  window.row_step = step_h * width;
  window.plane = height * width;
  window.col_step = step_w;
  window.rows = rows;
  window.loads = loads;
  window.whole = step_w <= 2;
  window.inside.resize(rows * LANES * loads);
  for (int l = 0; l < LANES; ++l) {
    const int64_t y = first_h + step_h * group.row[l];
    const int64_t x = first_w + step_w * group.col[l];
    window.first[l] = (group.image[l] * channels * height + y) * width + x;
    window.whole &= group.live[l] && y >= 0 &&
                    y + step_h * (rows - 1) < height && x >= 0 &&
                    x + 4 * loads <= width;
    mask4 columns_inside[4];
    for (int64_t c = 0; c < 4 * loads; ++c) {
      const int64_t at = x + step * c;
      columns_inside[c / 4][c % 4] = at >= 0 && at < width ? -1 : 0;
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = y + step_h * r;
      const bool row = group.live[l] && at >= 0 && at < height;
      for (int64_t i = 0; i < loads; ++i)
        window.inside[(r * LANES + l) * loads + i] =
            row ? columns_inside[i] : mask4{};
    }
  }
}
