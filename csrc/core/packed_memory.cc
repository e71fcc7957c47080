#include "core/packed_memory.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dynprune {

void FreePages::operator()(void* block) const { std::free(block); }

Pages huge_pages(size_t bytes) {
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  Pages pages(std::aligned_alloc(kHugePage, rounded));
  if (!pages) throw std::bad_alloc();
#if defined(__linux__)
  madvise(pages.get(), rounded, MADV_HUGEPAGE);
#endif
  return pages;
}

void* PackedMemory::allocate_bytes(size_t size) {
  constexpr size_t kLine = 64;
  const size_t bytes = (size + kLine - 1) / kLine * kLine;
  if (bytes > left_) {
    // Pages that stay untouched cost address space only.
    const size_t chunk = std::max(bytes, size_t{16} << 20);
    chunks_.push_back(huge_pages(chunk));
    next_ = static_cast<char*>(chunks_.back().get());
    left_ = (chunk + kHugePage - 1) / kHugePage * kHugePage;
  }
  char* block = next_;
  next_ += bytes;
  left_ -= bytes;
  return block;
}

}  // namespace dynprune
