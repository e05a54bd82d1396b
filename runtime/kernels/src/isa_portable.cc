// The portable version of the inner loops.
#include <initializer_list>
#include <type_traits>

#include "vec_portable.h"

#include "float_body.h"
#include "int8_body.h"

namespace shoal {

const Isa kPortableIsa = {"portable",   quantize, product_dots,      swiglu,       dequantize,
                          widen_halves, dot_rows, add_weighted_rows, softmax_part, blend};

}  // namespace shoal
