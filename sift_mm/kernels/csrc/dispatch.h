// Dispatch of a call to the code compiled for its sizes.
#pragma once

#include <array>
#include <cstdlib>

#include "views.h"

// A buffer for each thread, aligned to cache lines.
struct Buffers {
  size_t each;
  float* data;
  Buffers(int64_t threads, int64_t floats)
      : each((floats + 15) / 16 * 16),
        data((float*)aligned_alloc(
            64, std::max<size_t>(64, threads * each * sizeof(float)))) {}
  ~Buffers() { free(data); }
  Buffers(const Buffers&) = delete;
  float* of(int thread) const { return data + thread * each; }
};

// Selects the compiled row length of the tile, in vectors: TILE_STRIDES of
// geometry.py. 0 selects runs of pixels, -1 rows of features.
template <int ROWS, int COLS, class Work>
static int dispatch_stride(int64_t stride, const Work& work) {
  switch (stride) {
    case -1:
      return work.template run<Rows<ROWS, COLS>>();
    case 0:
      return work.template run<Pixels<ROWS, COLS>>();
    case 2:
      return work.template run<Patches<ROWS, COLS, 2>>();
    case 3:
      return work.template run<Patches<ROWS, COLS, 3>>();
    case 4:
      return work.template run<Patches<ROWS, COLS, 4>>();
    case 6:
      return work.template run<Patches<ROWS, COLS, 6>>();
    case 8:
      return work.template run<Patches<ROWS, COLS, 8>>();
    default:
      return -2;
  }
}

// Cost of a nonzero with patches of one size, in multiplications.
template <int ROWS, int COLS, class Work>
static int64_t cost(const Work& work, bool pixels) {
  constexpr int64_t OVERHEAD = 4;  // of reading the nonzero
  const int64_t groups = pixels ? Pixels<ROWS, COLS>::groups(work.s, work.walk)
                                : count_groups<ROWS, COLS>(work.s, work.walk);
  return groups * (ROWS * COLS + OVERHEAD);
}

// Large patches cost less per output; small ones waste fewer lanes.
template <class Work>
static std::array<int64_t, 3> costs(const Work& work, bool pixels) {
  return {cost<7, 2>(work, pixels), cost<7, 1>(work, pixels),
          cost<2, 2>(work, pixels)};
}

template <class Work>
static int64_t least_cost(const Work& work) {
  const auto all = costs(work, false);
  return *std::min_element(all.begin(), all.end());
}

// Splits a walk into all columns but the last, and the last.
template <class Work>
static std::array<Work, 2> without_last_column(const Work& whole) {
  Work most = whole, last = whole;
  const int64_t before = whole.walk.w.count - 1;
  most.walk.w.count = before;
  Axis& axis = last.walk.w;
  axis.count = 1;
  axis.out_first += before * axis.out_step;
  for (int64_t& first : axis.in_first) first += before * axis.in_step;
  return {most, last};
}

template <class Work>
static int dispatch(int64_t stride, const Work& work) {
  const bool pixels = stride <= 0;
  if (!pixels && work.walk.w.count > 1 && work.walk.w.count % 2) {
    // For 7 columns, patches of two would waste an eighth of the lanes.
    const auto [most, last] = without_last_column(work);
    if (least_cost(most) + least_cost(last) < least_cost(work)) {
      const int status = dispatch(stride, most);
      return status ? status : dispatch(stride, last);
    }
  }
  const auto all = costs(work, pixels);
  switch (std::min_element(all.begin(), all.end()) - all.begin()) {
    case 0:
      return dispatch_stride<7, 2>(stride, work);
    case 1:
      return dispatch_stride<7, 1>(stride, work);
    default:
      return dispatch_stride<2, 2>(stride, work);
  }
}
