// The AVX-512 version, with VNNI dot products, of the inner loops. Everything that is compiled for
// AVX-512 has internal linkage: an inline function shared with other files could be kept in that
// form and crash elsewhere.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own "undefined" vectors in immintrin.h for uninitialized variables.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cfloat>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "isa.h"
#include "scratch.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif

#include "vec_avx512.h"

#include "float_body.h"
#include "int8_body.h"
#include "tiles_avx512.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace shoal {

const Isa kAvx512VnniIsa = {"avx512vnni", quantize, product_tiles,     swiglu,       dequantize,
                            widen_halves, dot_rows, add_weighted_rows, softmax_part, blend};

}  // namespace shoal
#endif
