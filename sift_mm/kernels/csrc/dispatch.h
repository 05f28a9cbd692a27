// From the sizes of a call to the code compiled for them.
#pragma once

#include <cstdlib>

#include "views.h"

// A cache line aligned piece of memory for each thread.
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

// The row length of the tile, in vectors, as compiled: host and kernels agree
// on it (TILE_STRIDES of geometry.py). 0 stands for runs of pixels.
template <int COLS, class Work>
static int dispatch_stride(int64_t stride, const Work& work) {
  switch (stride) {
    case 0:
      return work.template run<Pixels<COLS>>();
    case 2:
      return work.template run<Patches<COLS, 2>>();
    case 3:
      return work.template run<Patches<COLS, 3>>();
    case 4:
      return work.template run<Patches<COLS, 4>>();
    case 6:
      return work.template run<Patches<COLS, 6>>();
    case 8:
      return work.template run<Patches<COLS, 8>>();
    default:
      return -2;
  }
}

// Patches of two columns need less per output, those of one column waste
// fewer lanes on few outputs.
template <class Work>
static int dispatch(int64_t stride, const Work& work) {
  const Sizes& s = work.s;
  const Walk& w = work.walk;
  const bool pixels = stride == 0;
  const int64_t wide =
      pixels ? Pixels<2>::groups(s, w) : count_groups<2>(s, w);
  const int64_t slim =
      pixels ? Pixels<1>::groups(s, w) : count_groups<1>(s, w);
  constexpr int64_t OVERHEAD = 4;  // of a nonzero, in multiplications
  return wide * (2 * ROWS + OVERHEAD) <= slim * (ROWS + OVERHEAD)
             ? dispatch_stride<2>(stride, work)
             : dispatch_stride<1>(stride, work);
}
