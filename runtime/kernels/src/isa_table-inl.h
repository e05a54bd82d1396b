// The inner loops of one instruction set and the table of them. Included by every isa_*.cc after
// its struct Vec, so that each compiles the loops anew for its own instructions. Everything in here
// has internal linkage: of a function shared with other files the linker could keep the form that
// one instruction set got, and crash on processors without it.
#pragma once

#include "float_body-inl.h"
#include "int8_body-inl.h"
#include "isa.h"

namespace shoal {
namespace {

// The table. Instruction sets differ in the primitives the loops are made of, and in `product`.
// Evaluated by the compiler: nothing runs before choose_isa() has looked at the processor.
constexpr Isa make_isa(const char* name, decltype(Isa::product) product) {
  return {
      .name = name,
      .quantize = quantize,
      .product = product,
      .swiglu = swiglu,
      .dequantize = dequantize,
      .widen_halves = widen_halves,
      .dot_rows = dot_rows,
      .add_weighted_rows = add_weighted_rows,
      .softmax_part = softmax_part,
      .blend = blend,
  };
}

}  // namespace
}  // namespace shoal
