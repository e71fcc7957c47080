// Index arithmetic against a plain convolution, without any kernel.
#include "cuda/index_math.h"

#include <cmath>
#include <vector>

#include "tests/cuda/device_test.h"

namespace dynprune::cuda::testing {
namespace {

static_assert(ceil_div(49, 64) == 1 && round_up(33, 32) == 64);
static_assert(chunk_bytes(0, 30) == 16 && chunk_bytes(3, 30) == 12 && chunk_bytes(4, 30) == 0);
static_assert(chunk_bytes(7, 30, 4) == 8 && chunk_bytes(8, 30, 4) == 0, "chunks of fp32 hold four channels");
static_assert(segment_begin(0, 3, 7) == 0 && segment_begin(1, 3, 7) == 2 && segment_begin(3, 3, 7) == 7);
static_assert(k_walker(37, 4, 3, 3).tap(3) == 9, "past the last tap");
static_assert(k_walker(5, 0, 3, 3).tap_y == 3, "an empty image has no chunks");

void walkers_agree_with_division() {
  for (int chunks = 1; chunks < 6; ++chunks) {
    for (int start = 0; start < 4; ++start) {
      KWalker w = k_walker(start, chunks, 3, 3);
      for (int i = start; i < 9 * chunks; i += 4) {
        expect(w.index == i && w.tap(3) == i / chunks && w.chunk == i % chunks, "walker at " + std::to_string(i));
        w = advance(w, 4, chunks, 3);
      }
    }
  }
}

// Every swizzle is a bijection, and eight rows of one column lie in eight different 16-byte banks.
void swizzles() {
  for (int width : {4, 8}) {
    std::set<int> seen;
    for (int row = 0; row < 64; ++row) {
      for (int unit = 0; unit < width; ++unit) seen.insert(width == 4 ? swizzle4(row, unit) : swizzle8(row, unit));
    }
    expect(static_cast<int>(seen.size()) == 64 * width && *seen.rbegin() == 64 * width - 1, "swizzle is a bijection");
    for (int row = 0; row < 64; row += 8) {
      for (int unit = 0; unit < width; ++unit) {
        std::set<int> banks;
        for (int r = row; r < row + 8; ++r) banks.insert((width == 4 ? swizzle4(r, unit) : swizzle8(r, unit)) % 8);
        expect(banks.size() == 8, "ldmatrix without bank conflicts");
      }
    }
  }
}

// Words of fp32 rows: four rows times eight columns, as one fragment reads them, lie in all 32 banks.
void words() {
  for (int column = 0; column < 64; column += 8) {
    std::set<int> banks, places;
    for (int row = 0; row < 4; ++row) {
      for (int c = column; c < column + 8; ++c) {
        const int word = swizzle16(row, c >> 2) * 4 + (c & 3);
        banks.insert(word % 32);
        places.insert(word);
      }
    }
    expect(banks.size() == 32 && places.size() == 32, "fp32 fragments without bank conflicts");
  }
}

void tiles_are_located() {
  const std::vector<int> tiles = {3, 0, 0, 2, 1, 0};
  std::vector<int> first = {0};
  for (int t : tiles) first.push_back(first.back() + t);
  int tile = 0;
  for (size_t image = 0; image < tiles.size(); ++image) {
    for (int i = 0; i < tiles[image]; ++i, ++tile) {
      const TileOfImage at = locate_tile(first.data(), static_cast<int>(tiles.size()), tile);
      expect(at.image == static_cast<int>(image) && at.tile == i, "tile " + std::to_string(tile));
    }
  }
}

// Adds up a convolution by the kernels' indices only, and compares it with nested loops.
void convolution(const ConvShape& s, double live, unsigned seed) {
  Random random(seed);
  const Mask mask = random.mask(1, s.channels, live);
  const std::vector<uint8_t> sets = host_sets(mask, 1, s.channels);
  const SetView set = set_view(sets.data(), 0, s.channels);
  std::vector<float> x = random.vector(static_cast<size_t>(s.in_h) * s.in_w * s.channels);
  std::vector<float> by_input(static_cast<size_t>(s.taps()) * (s.channels + 1) * round_up(s.outputs, kChunk), 0.0f);
  std::vector<float> by_output(weight_by_output(s, s.outputs, 0, 0), 0.0f);
  std::vector<float> plain = random.vector(static_cast<size_t>(s.outputs) * s.channels * s.taps());
  const auto at = [&](int k, int c, int tap) { return (static_cast<size_t>(k) * s.channels + c) * s.taps() + tap; };
  for (int k = 0; k < s.outputs; ++k) {
    for (int c = 0; c < s.channels; ++c) {
      for (int tap = 0; tap < s.taps(); ++tap) {
        by_input[weight_by_input(s, tap, c, k)] = by_output[weight_by_output(s, k, tap, c)] = plain[at(k, c, tap)];
      }
    }
  }
  const int chunks = ceil_div(set.count(), kChunk);
  for (int pixel = 0; pixel < s.out_pixels(); ++pixel) {
    for (int k = 0; k < s.outputs; ++k) {
      double gathered = 0.0, dense = 0.0, expected = 0.0;
      for (int t = 0; t < s.taps() * chunks; ++t) {
        const KWalker w = k_walker(t, chunks, s.kernel_h, s.kernel_w);
        const int from = input_pixel(s, pixel, w.tap(s.kernel_w));
        for (int e = 0; e < kChunk && from >= 0; ++e) {
          const bool stored = 2 * e < chunk_bytes(w.chunk, set.count());
          const int channel = set.index()[w.chunk * kChunk + e];
          expect(stored == (channel < s.channels), "padding of the list starts where the data end");
          const double v = stored ? x[static_cast<size_t>(from) * s.channels + channel] : 0.0;
          gathered += v * by_input[weight_by_input(s, w.tap(s.kernel_w), channel, k)];
          if (stored) dense += v * by_output[weight_by_output(s, k, w.tap(s.kernel_w), channel)];
        }
      }
      for (int r = 0; r < s.kernel_h; ++r) {
        for (int q = 0; q < s.kernel_w; ++q) {
          const int iy = pixel / s.out_w * s.stride_h - s.pad_top + r * s.dilation_h;
          const int ix = pixel % s.out_w * s.stride_w - s.pad_left + q * s.dilation_w;
          if (iy < 0 || ix < 0 || iy >= s.in_h || ix >= s.in_w) continue;
          for (int c = 0; c < s.channels; ++c) {
            if (!mask[static_cast<size_t>(c)]) continue;
            expected += static_cast<double>(x[(static_cast<size_t>(iy) * s.in_w + ix) * s.channels + c]) *
                        plain[at(k, c, r * s.kernel_w + q)];
          }
        }
      }
      expect(std::fabs(gathered - expected) < 1e-6 && std::fabs(dense - expected) < 1e-6, "convolution by indices");
    }
  }
}

}  // namespace
}  // namespace dynprune::cuda::testing

int main() {
  using namespace dynprune::cuda;
  using namespace dynprune::cuda::testing;
  walkers_agree_with_division();
  swizzles();
  words();
  tiles_are_located();
  convolution({7, 7, 7, 7, 20, 12, 3, 3, 1, 1, 1, 1, 1, 1}, 0.5, 1);
  convolution({9, 8, 5, 4, 33, 9, 3, 3, 2, 2, 1, 1, 1, 1}, 0.4, 2);
  convolution({6, 5, 6, 5, 8, 8, 1, 1, 1, 1, 0, 0, 1, 1}, 1.0, 3);
  convolution({9, 9, 9, 9, 10, 4, 3, 3, 1, 1, 2, 2, 2, 2}, 0.6, 4);
  convolution({8, 8, 6, 4, 12, 4, 3, 5, 1, 1, 0, 0, 1, 1}, 0.0, 5);
  return report("index_math");
}
