// SPDX-License-Identifier: MIT
#include <every_header.hpp>

using address = void (*)();
address two();
address two() { return reinterpret_cast<address>(&bitladder::pack_scalar); }
