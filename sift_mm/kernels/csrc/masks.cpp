// Masking in place, limited by memory bandwidth.
#include <algorithm>
#include <cstdint>

namespace {

// A block without change is not written, which saves most of the memory
// traffic after a mask update.
template <class T>
void keep(const uint8_t* __restrict mask, int64_t n, int64_t threads,
          T* __restrict data) {
  const int64_t blocks = (n + 63) / 64;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t begin = block * 64, end = std::min(n, begin + 64);
    T stray = 0;
    for (int64_t j = begin; j < end; ++j) stray |= data[j] & T(mask[j] - 1);
    if (stray)
      for (int64_t j = begin; j < end; ++j) data[j] &= -T(mask[j]);
  }
}

}  // namespace

// Sets numbers of `size` bytes to zero where the mask is false.
extern "C" int sift_keep(const uint8_t* mask, int64_t n, int64_t size,
                         int64_t threads, void* data) {
  switch (size) {
    case 2:
      return keep(mask, n, threads, (uint16_t*)data), 0;
    case 4:
      return keep(mask, n, threads, (uint32_t*)data), 0;
    case 8:
      return keep(mask, n, threads, (uint64_t*)data), 0;
    default:
      return -1;
  }
}
