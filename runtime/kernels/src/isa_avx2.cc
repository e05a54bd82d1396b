// The AVX2 version of the inner loops. Everything that is compiled for AVX2 has internal linkage:
// an inline function shared with other files could be kept in its AVX2 form and crash elsewhere.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cfloat>
#include <cstdint>
#include <initializer_list>

#include "isa.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2.h"

#include "float_body.h"
#include "int8_body.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace shoal {

const Isa kAvx2Isa = {"avx2",   quantize,          product_dots, swiglu, dequantize, widen_halves, dot_rows, add_weighted_rows, softmax_part, blend};

}  // namespace shoal
#endif
