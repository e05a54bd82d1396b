// The inner loops in plain C++, for any processor.
#include "inl_includes.h"

#include "vec_portable-inl.h"
#include "isa_table-inl.h"

namespace shoal {

constexpr Isa kPortableIsa = make_isa("portable", product_dots);

}  // namespace shoal
