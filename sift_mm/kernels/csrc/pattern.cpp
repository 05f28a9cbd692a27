// From a mask to the nonzeros as the kernels read them, and the values of
// the nonzeros to and from the dense tensor.
#include <vector>

#include "caches.h"
#include "simd.h"

// How one side of a product reads the dense (filters, channels, taps) mask:
// forward its rows are filters and its planes (channel, phase); for the
// gradient of the input its rows are channels and its planes filters.
struct Reading {
  int64_t filters, channels, taps, by_channel, phases, block;
  int64_t tile;  // vectors of the tile of a plane
};

// Two calls: without `position`, `row` is filled with counts and prefix sums
// (its length is blocks * rows + 1); with it, positions and indices of the
// nonzeros follow, in the order of the dense tensor within each row. Taps of
// phase -1 are left out. Returns the number of nonzeros.
extern "C" int64_t sift_pattern(const Reading* reading, const uint8_t* mask,
                                const int32_t* phase, const int32_t* offset,
                                int64_t blocks, int32_t* row,
                                uint16_t* position, int32_t* index) {
  const Reading& r = *reading;
  const int64_t rows = r.by_channel ? r.channels : r.filters;
  std::vector<int32_t> next(row, row + blocks * rows);
  int64_t i = 0;
  if (!position)
    for (int64_t j = 0; j <= blocks * rows; ++j) row[j] = 0;
  for (int64_t k = 0; k < r.filters; ++k)
    for (int64_t c = 0; c < r.channels; ++c)
      for (int64_t t = 0; t < r.taps; ++t, ++i) {
        if (!mask[i] || phase[t] < 0) continue;
        const int64_t plane = (r.by_channel ? k : c) * r.phases + phase[t];
        const int64_t at = plane / r.block * rows + (r.by_channel ? c : k);
        if (!position) {
          ++row[at + 1];
          continue;
        }
        const int32_t n = next[at]++;
        position[n] = uint16_t(plane % r.block * r.tile + offset[t]);
        index[n] = int32_t(i);
      }
  if (!position)
    for (int64_t j = 0; j < blocks * rows; ++j) row[j + 1] += row[j];
  return row[blocks * rows];
}

extern "C" void sift_gather(const float* dense, const int32_t* index,
                            int64_t count, int64_t threads, float* values) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) values[i] = dense[index[i]];
}

extern "C" void sift_scatter(const float* values, const int32_t* index,
                             int64_t count, int64_t threads, float* dense) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) dense[index[i]] = values[i];
}

// Vectors of packed inputs that a core's L1 cache holds, beside room for
// accumulators and the streams of nonzeros.
extern "C" int64_t sift_tile_vectors() {
  return l1_bytes() * 27 / 32 / int64_t(LANES * sizeof(float));
}
