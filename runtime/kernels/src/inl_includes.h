// The standard headers of the *-inl.h files. An isa_*.cc includes this before it tells the compiler
// of its instructions: inline functions of the standard library are shared with all other files.
#pragma once

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "isa.h"
#include "thresholds.h"
