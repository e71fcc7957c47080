// The registry of operators on flat tensors. dynprune_rt/backends/cpu/flat_ops.py maps every IR
// operator to one of these and writes its integers and floats in the order stated at each kernel.
#include "flat_elementwise.h"
#include "flat_indexing.h"
#include "flat_lines.h"
#include "flat_matrix.h"
#include "flat_norm.h"
#include "flat_order.h"
#include "flat_reduce.h"
#include "flat_shape.h"
#include "flat_space.h"

namespace dynprune::cpu {
namespace {

const FlatOp kFlatOps[] = {
    {"unary", flat_unary},
    {"binary", flat_binary},
    {"where", flat_where},
    {"affine", flat_affine},
    {"copy", flat_copy},
    {"cat", flat_cat},
    {"gather", flat_gather},
    {"scatter", flat_scatter},
    {"index_select", flat_index_select},
    {"one_hot", flat_one_hot},
    {"reduce", flat_reduce},
    {"arg_extreme", flat_arg_extreme},
    {"softmax", flat_softmax},
    {"log_softmax", flat_log_softmax},
    {"cumsum", flat_cumsum},
    {"order", flat_order},
    {"scatter_top", flat_scatter_top},
    {"linear", flat_linear},
    {"matmul", flat_matmul},
    {"group_norm", flat_group_norm},
    {"layer_norm", flat_layer_norm},
    {"pool2d", flat_pool2d},
    {"adaptive_pool2d", flat_adaptive_pool2d},
    {"interpolate", flat_interpolate},
};

}  // namespace

void DYNPRUNE_ISA_NAME(fill_flat_ops)(KernelTable& table) {
  table.flat_ops = kFlatOps;
  table.n_flat_ops = static_cast<int32_t>(sizeof(kFlatOps) / sizeof(kFlatOps[0]));
}

}  // namespace dynprune::cpu
