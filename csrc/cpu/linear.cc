// Matrix times vector: classifiers and gate layers.
#include "dot_rows.h"

namespace dynprune::cpu {
namespace {

void linear(int32_t out_features, int32_t in_features, const float* weights, const float* bias, const float* x,
            Clamp limits, float* y) {
  matrix_vector(out_features, in_features, weights, bias, x, limits, y);
}

}  // namespace

void DYNPRUNE_ISA_NAME(fill_linear)(KernelTable& table) { table.linear = linear; }

}  // namespace dynprune::cpu
