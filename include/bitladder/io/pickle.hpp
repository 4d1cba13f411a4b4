// SPDX-License-Identifier: MIT
// Python pickles, as far as torch.save needs them and no further: plain values, OrderedDict,
// torch.Size, and tensors over storages that are named, not read. Nothing is ever imported or
// called: the few permitted names stand for constructions made here, and any other name or opcode
// is an error. Tested by tests/io/pickle_test.cpp.
#pragma once

#include <bitladder/io/detail/pickle_machine.hpp>
#include <bitladder/io/pickle_value.hpp>

#include <string>
#include <string_view>

namespace bitladder {
inline namespace v0_1 {

/// Reads one pickle of protocol 2 to 5.
/// @param bytes the whole pickle; must outlive the document, whose text lies in it
/// @param where named in errors: a path and the part of it
/// @throws error(bad_file) naming the byte, for an opcode or name outside the list, a stack that
/// does not fit, a limit passed, or bytes behind the end
inline pickle_document read_pickle(std::string_view bytes, const std::string& where,
                                   const pickle_limits& limits = {}) {
  return detail::pickle_machine(bytes, where, limits).run();
}

}  // namespace v0_1
}  // namespace bitladder
