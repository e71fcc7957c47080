// The element functions in double precision with the C library, for the plane and the flat tests.
#pragma once

#include <cmath>

#include "cpu/kernels.h"

namespace dynprune::test {

inline double unary_reference(cpu::Unary op, double x, float a, float b) {
  using cpu::Unary;
  const double gate = std::isnan(x) ? x : std::fmin(std::fmax(x + 3, 0.0), 6.0);
  switch (op) {
    case Unary::kRelu:
      return x < 0 ? 0 : x;
    case Unary::kClamp:
      return x < a ? a : x > b ? b : x;
    case Unary::kLeakyRelu:
      return x > 0 ? x : x * a;
    case Unary::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case Unary::kTanh:
      return std::tanh(x);
    case Unary::kSilu:
      return x / (1 + std::exp(-x));
    case Unary::kHardswish:
      return x * gate / 6;
    case Unary::kHardsigmoid:
      return gate / 6;
    case Unary::kMish:
      return x * std::tanh(std::log1p(std::exp(x)));
    case Unary::kSoftplus:
      return x > 20 ? x : std::log1p(std::exp(x));
    case Unary::kElu:
      return x > 0 ? x : a * std::expm1(x);
    case Unary::kGelu:
      return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Unary::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Unary::kNeg:
      return -x;
    case Unary::kAbs:
      return std::fabs(x);
    case Unary::kSqrt:
      return std::sqrt(x);
    case Unary::kRsqrt:
      return 1 / std::sqrt(x);
    case Unary::kExp:
      return std::exp(x);
    case Unary::kLog:
      return std::log(x);
    case Unary::kReciprocal:
      return 1 / x;
    case Unary::kRound:
      return std::nearbyint(x);
    case Unary::kFloor:
      return std::floor(x);
    case Unary::kCeil:
      return std::ceil(x);
    case Unary::kTrunc:
    case Unary::kCastInt:
      return std::trunc(x);
    case Unary::kSign:
      return (x > 0) - (x < 0);
    case Unary::kNot:
      return x == 0;
    case Unary::kIsNan:
      return std::isnan(x);
    case Unary::kErf:
      return std::erf(x);
    case Unary::kSquare:
      return x * x;
    case Unary::kSin:
      return std::sin(x);
    case Unary::kCos:
      return std::cos(x);
    case Unary::kPowScalar:
      return std::pow(x, a);
    case Unary::kAffine:
      return static_cast<double>(static_cast<float>(x) * a) + b;
    case Unary::kCastBool:
      return x != 0;
  }
  return 0;
}

inline double binary_reference(cpu::Binary op, double x, double y) {
  using cpu::Binary;
  switch (op) {
    case Binary::kAdd:
      return x + y;
    case Binary::kSub:
      return x - y;
    case Binary::kMul:
      return x * y;
    case Binary::kDiv:
      return x / y;
    case Binary::kMaximum:
      return std::isnan(x) || std::isnan(y) ? x + y : std::fmax(x, y);
    case Binary::kMinimum:
      return std::isnan(x) || std::isnan(y) ? x + y : std::fmin(x, y);
    case Binary::kPow:
      return std::pow(x, y);
    case Binary::kRemainder: {
      const double r = std::fmod(x, y);
      return r != 0 && (r < 0) != (y < 0) ? static_cast<float>(r) + static_cast<float>(y) : r;
    }
    case Binary::kFloorDivide:
      return y == 0 ? x / y : std::isinf(x) ? NAN : std::floor(x / y);
    case Binary::kEq:
      return x == y;
    case Binary::kNe:
      return x != y;
    case Binary::kLt:
      return x < y;
    case Binary::kLe:
      return x <= y;
    case Binary::kGt:
      return x > y;
    case Binary::kGe:
      return x >= y;
    case Binary::kAnd:
      return x != 0 && y != 0;
    case Binary::kOr:
      return x != 0 || y != 0;
    case Binary::kXor:
      return (x != 0) != (y != 0);
  }
  return 0;
}

}  // namespace dynprune::test
