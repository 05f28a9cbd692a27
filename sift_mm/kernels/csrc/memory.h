// Caches, and memory of large outputs.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

// A fresh output of many megabytes costs a page fault every 4 KB, a sixth of
// the time of a layer; huge pages, where the system has them, are of 2 MB.
static inline void use_huge_pages(float* data, size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t PAGE = 2 << 20;
  const uintptr_t begin = ((uintptr_t)data + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = ((uintptr_t)data + bytes) / PAGE * PAGE;
  if (end > begin) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#endif
}

static inline int64_t l2_bytes() {
  long bytes = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : 256 * 1024;
}
