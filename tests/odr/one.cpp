// SPDX-License-Identifier: MIT
#include <every_header.hpp>

using address = void (*)();
address one();
address one() { return reinterpret_cast<address>(&bitladder::pack_scalar); }
