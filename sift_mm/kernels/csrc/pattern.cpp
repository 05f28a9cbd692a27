// Patterns of masks in the kernels' order; gather and scatter of the values.
#include <algorithm>
#include <vector>

#include "caches.h"
#include "simd.h"

// Order in which a product reads the dense (filters, channels, taps) mask. In
// the forward pass rows are filters and planes (phase, channel); for the input
// gradient rows are channels and planes (phase, filter).
struct Reading {
  int64_t filters, channels, taps, by_channel, phases, block;
  int64_t tile;    // vectors per plane of the tile
  int64_t paired;  // nonzeros of rows 2 i and 2 i + 1 alternate
  int64_t threads;
};

namespace {

// Calls visit(i, row, plane, tap) for each nonzero whose tap has a phase, in
// the order of the dense tensor within each row of a block, and in parallel
// over filters that share no row and block.
template <class Visit>
void each_nonzero(const Reading& r, const uint8_t* mask, const int32_t* phase,
                  const Visit& visit) {
  const int64_t length = r.channels * r.taps;
  // With one plane per filter, `block` filters share a block.
  const int64_t share = !r.by_channel   ? 1
                        : r.phases == 1 ? r.block
                                        : r.filters;
#pragma omp parallel for schedule(static) num_threads(r.threads)
  for (int64_t first = 0; first < r.filters; first += share)
    for (int64_t k = first; k < std::min(first + share, r.filters); ++k)
      for (int64_t j = 0; j < length; j += 8) {
        const uint8_t* at = mask + k * length + j;
        uint32_t bits = bits_of(at, length - j);
        for (; bits; bits &= bits - 1) {
          const uint32_t place = uint32_t(j) + __builtin_ctz(bits);
          const uint32_t c = place / uint32_t(r.taps);
          const uint32_t t = place - c * uint32_t(r.taps);
          if (phase[t] < 0) continue;
          const int64_t of_phase = r.by_channel ? r.filters : r.channels;
          const int64_t plane = phase[t] * of_phase + (r.by_channel ? k : c);
          visit(k * length + place, r.by_channel ? c : k, plane, t);
        }
      }
}

}  // namespace

// Returns the number of nonzeros. The first call, without `position`, fills
// `row` (length blocks * rows + 1) with prefix sums; the second fills
// positions and indices, in the order of the dense tensor within each row or
// pair of rows.
// Taps of phase -1 are skipped.
extern "C" int64_t sift_pattern(const Reading* reading, const uint8_t* mask,
                                const int32_t* phase, const int32_t* offset,
                                int64_t blocks, int32_t* row,
                                uint16_t* position, int32_t* index) {
  const Reading& r = *reading;
  const int64_t rows = r.by_channel ? r.channels : r.filters;
  const int64_t planes = (r.by_channel ? r.filters : r.channels) * r.phases;
  std::vector<int64_t> start(planes), tile(planes);
  for (int64_t plane = 0; plane < planes; ++plane) {
    start[plane] = plane / r.block * rows;
    tile[plane] = plane % r.block * r.tile;
  }
  if (position) {
    std::vector<int32_t> next(row, row + blocks * rows);
    each_nonzero(r, mask, phase,
                 [&](int64_t i, int64_t to, int64_t plane, uint32_t tap) {
                   int32_t n = next[start[plane] + to]++;
                   if (r.paired && (to | 1) < rows) {
                     const int32_t* pair = row + start[plane] + to / 2 * 2;
                     n = pair[0] + 2 * (n - pair[to % 2]) + to % 2;
                   }
                   position[n] = uint16_t(tile[plane] + offset[tap]);
                   index[n] = int32_t(i);
                 });
  } else {
    std::fill(row, row + blocks * rows + 1, 0);
    each_nonzero(r, mask, phase,
                 [&](int64_t, int64_t to, int64_t plane, uint32_t) {
                   ++row[start[plane] + to + 1];
                 });
    for (int64_t j = 0; j < blocks * rows; ++j) row[j + 1] += row[j];
  }
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

// Counts the nonzeros outside the mask; a NaN is a nonzero.
extern "C" int64_t sift_nonzeros_outside(const float* dense,
                                         const uint8_t* mask, int64_t count,
                                         int64_t threads) {
  int64_t found = 0;
#pragma omp parallel for simd schedule(static) num_threads(threads) \
    reduction(+ : found)
  for (int64_t i = 0; i < count; ++i) found += (dense[i] != 0) & !mask[i];
  return found;
}

// Number of packed vectors that fit L1 beside the accumulators and the streams
// of nonzeros.
extern "C" int64_t sift_tile_vectors() {
  return l1_bytes() * 27 / 32 / int64_t(LANES * sizeof(float));
}
