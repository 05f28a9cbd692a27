// Passes over a whole layer for an update of its mask. Each reads what it
// needs once, in order: memory is what they take their time for.
#include <algorithm>
#include <numeric>
#include <vector>

#include "simd.h"

namespace {

// What each thread does: whole blocks of 64, so that no byte of bits is two
// threads'.
template <class Work>
void in_shares(int64_t n, int64_t threads, const Work& work) {
  const int64_t blocks = (n + 63) / 64;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t t = 0; t < threads; ++t)
    work(t, blocks * t / threads * 64,
         std::min(n, blocks * (t + 1) / threads * 64));
}

// Bytes may be anything's: without __restrict each loop would check first.
void and_into(uint8_t* __restrict mask, const uint8_t* __restrict other,
              int64_t count) {
  if (count == 64)  // of a size that the compiler knows
    for (int j = 0; j < 64; ++j) mask[j] &= other[j];
  else
    for (int64_t j = 0; j < count; ++j) mask[j] &= other[j];
}

// Moves what each share has found to where the one before ends.
template <class T>
int64_t join(T* data, const std::vector<int64_t>& start,
             const std::vector<int64_t>& found) {
  int64_t end = 0;
  for (size_t t = 0; t < start.size(); ++t) {
    memmove(data + end, data + start[t], found[t] * sizeof(T));
    end += found[t];
  }
  return end;
}

// A bit for each of 64 bools, the first the lowest.
uint64_t bits_of_block(const uint8_t* bools) {
  uint64_t bits = 0;
#ifdef __AVX2__
  for (int half = 0; half < 2; ++half) {
    const __m256i some = _mm256_loadu_si256((const __m256i*)bools + half);
    // The mask is of the highest bit of each byte.
    const int32_t mask = _mm256_movemask_epi8(_mm256_slli_epi16(some, 7));
    bits |= uint64_t(uint32_t(mask)) << 32 * half;
  }
#else
  for (int i = 0; i < 64; i += 8) bits |= uint64_t(bits_of(bools + i, 8)) << i;
#endif
  return bits;
}

// A bit for each of eight lanes that are all ones, the first the lowest.
uint64_t bits_of(lanes8 v) {
#ifdef __AVX2__
  return uint32_t(_mm256_movemask_ps((__m256)v));
#else
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= uint64_t(v[i] & 1) << i;
  return bits;
#endif
}

// Flips a block of 64 bools, the first by the lowest bit.
void flip(uint8_t* bools, uint64_t bits) {
#ifdef __AVX2__
  // Each byte of bits eight times, and of each one the bit that it is for.
  const __m256i each = _mm256_set_epi64x(
      0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
  const __m256i bit = _mm256_set1_epi64x(0x8040201008040201);
  for (int half = 0; half < 2; ++half) {
    __m256i* at = (__m256i*)bools + half;
    const __m256i some = _mm256_and_si256(
        bit, _mm256_shuffle_epi8(_mm256_set1_epi32(int32_t(bits >> 32 * half)),
                                 each));
    const __m256i ones =
        _mm256_and_si256(_mm256_cmpeq_epi8(some, bit), _mm256_set1_epi8(1));
    _mm256_storeu_si256(at, _mm256_xor_si256(_mm256_loadu_si256(at), ones));
  }
#else
  for (int i = 0; i < 64; ++i) bools[i] ^= bits >> i & 1;
#endif
}

uint64_t allowed(const uint8_t* block, int active) {
  const uint64_t bits = bits_of_block(block);
  return active ? bits : ~bits;
}

// A block of 64 from i on: in place, or copied and filled up at the end.
template <class T>
struct Block {
  T copy[64];
  const T* at(const T* data, int64_t i, int64_t n) {
    if (n - i >= 64) return data + i;
    memset(copy, 0, sizeof copy);
    memcpy(copy, data + i, (n - i) * sizeof(T));
    return copy;
  }
};

// Numbers as integers of the same order, zeros of either sign alike.
int32_t key(float number) {
  number += 0.0f;
  int32_t bits;
  memcpy(&bits, &number, sizeof bits);
  return bits ^ (bits >> 31 & INT32_MAX);
}

// The n-th highest key, n from 1 on: counted by their leading bits, and again
// in the bucket where it is. `n` becomes how many of those equal to it are
// among the n highest.
int32_t reduce_to_nth(std::vector<int32_t>& keys, int64_t& n) {
  constexpr int BITS = 11;
  for (;;) {
    const auto [low, high] = std::minmax_element(keys.begin(), keys.end());
    const int32_t lowest = *low;
    const uint32_t range = uint32_t(*high) - uint32_t(lowest);
    if (!range) return lowest;
    const int shift = std::max(0, 32 - __builtin_clz(range) - BITS);
    const auto bucket = [&](int32_t k) {
      return (uint32_t(k) - uint32_t(lowest)) >> shift;
    };
    int64_t size[1 << BITS] = {};
    for (const int32_t k : keys) ++size[bucket(k)];
    uint32_t at = range >> shift;
    for (; n > size[at]; --at) n -= size[at];
    size_t kept = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      const int32_t k = keys[i];
      keys[kept] = k;
      kept += bucket(k) == at;
    }
    keys.resize(kept);
  }
}

// Whole blocks are left unwritten where nothing changes: after an update of a
// sparse mask that is most of the memory.
template <class T>
void keep(const uint8_t* __restrict mask, int64_t n, int64_t threads,
          T* __restrict data) {
  in_shares(n, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += 64) {
      const int64_t count = std::min<int64_t>(64, end - i);
      T stray = 0;
      for (int64_t j = i; j < i + count; ++j)
        stray |= data[j] & T(mask[j] - 1);
      if (stray)
        for (int64_t j = i; j < i + count; ++j) data[j] &= -T(mask[j]);
    }
  });
}

}  // namespace

// Divides n scores, (value & clear) | set, by a bracket: a bit in `above` for
// those higher than `high`; place and number of those from `low` to `high`, in
// rising order. `found` is how many are in the bracket, and how many above.
// Those of which the mask is not `active` are left out, unless it is null; so
// is NaN.
extern "C" void sift_divide(const float* values, const uint8_t* mask,
                            int active, int64_t n, uint32_t clear,
                            uint32_t set, float low, float high,
                            int64_t threads, uint8_t* above, int32_t* places,
                            float* numbers, int64_t* found) {
  // A thread writes from where its share begins.
  std::vector<int64_t> start(threads), inside(threads), higher(threads);
  in_shares(n, threads, [&](int64_t t, int64_t begin, int64_t end) {
    Block<float> floats;
    Block<uint8_t> bools;
    int64_t next = begin, over_all = 0;
    for (int64_t i = begin; i < end; i += 64) {
      const float* block = floats.at(values, i, end);
      const int64_t count = std::min<int64_t>(64, end - i);
      uint64_t valid = ~0ull >> (64 - count), over = 0, from = 0;
      if (mask) valid &= allowed(bools.at(mask, i, end), active);
      for (int j = 0; j < 64; j += 8) {
        const lanes8 word = (lanes8)load_any<vec8>(block + j);
        const vec8 score = (vec8)((word & int32_t(clear)) | int32_t(set));
        over |= bits_of(score > high) << j;
        from |= bits_of(score >= low) << j;
      }
      over &= valid;
      memcpy(above + i / 8, &over, (count + 7) / 8);
      over_all += __builtin_popcountll(over);
      for (from &= valid & ~over; from; from &= from - 1) {
        const int j = __builtin_ctzll(from);
        uint32_t word;
        memcpy(&word, block + j, sizeof word);
        word = (word & clear) | set;
        memcpy(numbers + next, &word, sizeof word);
        places[next++] = int32_t(i + j);
      }
    }
    start[t] = begin;
    inside[t] = next - begin;
    higher[t] = over_all;
  });
  join(places, start, inside);
  found[0] = join(numbers, start, inside);
  found[1] = std::accumulate(higher.begin(), higher.end(), int64_t(0));
}

// Counts the bits of places of which the mask is `active`, and flips the mask
// there if that is asked for.
extern "C" int64_t sift_above(const uint8_t* bits, int active, int flipped,
                              int64_t n, int64_t threads, uint8_t* mask) {
  int64_t total = 0;
  in_shares(n, threads, [&](int64_t, int64_t begin, int64_t end) {
    Block<uint8_t> bools;
    int64_t chosen = 0;
    for (int64_t i = begin; i < end; i += 64) {
      const int64_t count = std::min<int64_t>(64, end - i);
      uint64_t both = 0;
      memcpy(&both, bits + i / 8, (count + 7) / 8);
      if (!both) continue;
      both &= allowed(bools.at(mask, i, end), active);
      chosen += __builtin_popcountll(both);
      if (!flipped) continue;
      if (count == 64) {
        flip(mask + i, both);
      } else {
        flip(bools.copy, both);
        memcpy(mask + i, bools.copy, count);
      }
    }
#pragma omp atomic
    total += chosen;
  });
  return total;
}

// At which of m places, in rising order, the mask is `active`; returns how
// many those are.
extern "C" int64_t sift_among(const int32_t* places, int64_t m, int active,
                              int64_t threads, const uint8_t* mask,
                              uint8_t* among) {
  int64_t total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total)
  for (int64_t i = 0; i < m; ++i)
    total += among[i] = mask[places[i]] == active;
  return total;
}

// Flips the mask at the `need` highest of m numbers that are at places of
// which it is `active`; of equal ones at the first. There are as many.
extern "C" void sift_flip(const int32_t* places, const float* numbers,
                          int64_t m, int64_t need, int active, int64_t threads,
                          uint8_t* mask) {
  if (!need) return;
  std::vector<int32_t> keys(m);
  std::vector<int64_t> start(threads), found(threads);
  in_shares(m, threads, [&](int64_t t, int64_t begin, int64_t end) {
    int64_t next = begin;
    for (int64_t i = begin; i < end; ++i) {
      keys[next] = key(numbers[i]);
      next += mask[places[i]] == active;
    }
    start[t] = begin, found[t] = next - begin;
  });
  keys.resize(join(keys.data(), start, found));
  const int32_t last = reduce_to_nth(keys, need);
  in_shares(m, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // No branch, which would be taken every other time.
      uint8_t& at = mask[places[i]];
      at ^= (at == active) & (key(numbers[i]) > last);
    }
  });
  for (int64_t i = 0; need; ++i) {
    if (key(numbers[i]) != last || mask[places[i]] != active) continue;
    mask[places[i]] = !active;
    --need;
  }
}

// Leaves in `mask` what is in `other` too; returns how many those are, and how
// many are in `other` by `active`.
extern "C" int64_t sift_meet(const uint8_t* other, int64_t n, int64_t threads,
                             uint8_t* mask, int64_t* active) {
  int64_t both = 0, all = 0;
  in_shares(n, threads, [&](int64_t, int64_t begin, int64_t end) {
    Block<uint8_t> first, second;
    int64_t met = 0, seen = 0;
    for (int64_t i = begin; i < end; i += 64) {
      const uint64_t mine = bits_of_block(first.at(mask, i, end));
      const uint64_t its = bits_of_block(second.at(other, i, end));
      met += __builtin_popcountll(mine & its);
      seen += __builtin_popcountll(its);
      if (mine & ~its)
        and_into(mask + i, other + i, std::min<int64_t>(64, end - i));
    }
#pragma omp atomic
    both += met;
#pragma omp atomic
    all += seen;
  });
  *active = all;
  return both;
}

// Sets to zero the numbers, of `size` bytes each, where a mask is false.
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
