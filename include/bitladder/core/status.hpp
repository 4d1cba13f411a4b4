// SPDX-License-Identifier: MIT
// How the library reports failure. Launchers return a `status` and never throw; host code throws
// `error`, whose text says what was expected and what was found; `check` is the bridge between
// them. Nothing here prints, exits or aborts. Tested by tests/core/status_test.cpp.
#pragma once

#include <stdexcept>
#include <string>

namespace bitladder {
inline namespace v0_1 {

/// Outcome of a call that does not throw.
enum class status : int {
  ok = 0,
  invalid_argument,    ///< a null pointer, a negative size, an option out of its range
  shape_mismatch,      ///< two operands whose rows or columns do not agree
  unsupported_bits,    ///< a precision outside the list that was compiled
  too_few_planes,      ///< more bits asked for than the tensor holds
  misaligned,          ///< a pointer off the alignment that the function states
  unsupported_device,  ///< the card lacks an instruction or the memory that the kernel needs
  launch_failed,       ///< the runtime refused the launch
  out_of_memory,       ///< host or device memory could not be had
  io_failed,           ///< the operating system refused to open, read, write or rename
  bad_file,            ///< the bytes of a file contradict its format or each other
  not_found,           ///< a tensor, precision or key that is not there
};

/// A sentence fragment for people; the same text for the life of the program.
constexpr const char* to_string(status s) noexcept {
  switch (s) {
    case status::ok: return "ok";
    case status::invalid_argument: return "invalid argument";
    case status::shape_mismatch: return "operand shapes do not agree";
    case status::unsupported_bits: return "precision not supported";
    case status::too_few_planes: return "more bits asked for than planes present";
    case status::misaligned: return "pointer not aligned as required";
    case status::unsupported_device: return "device not supported";
    case status::launch_failed: return "kernel launch failed";
    case status::out_of_memory: return "out of memory";
    case status::io_failed: return "input or output failed";
    case status::bad_file: return "file is damaged or not of the expected format";
    case status::not_found: return "not found";
  }
  return "unknown status";
}

/// What host functions throw. `what()` names the file, tensor or option, what was expected and what
/// was found.
class error : public std::runtime_error {
 public:
  error(status code, const std::string& message) : std::runtime_error(message), code_(code) {}
  /// The kind of failure, for callers that act on it.
  status code() const noexcept { return code_; }

 private:
  status code_;
};

/// Throws `error` unless `s` is ok.
/// @param what what was being done, put before the status text
inline void check(status s, const char* what = nullptr) {
  if (s == status::ok) return;
  throw error(
      s, what == nullptr ? std::string(to_string(s)) : std::string(what) + ": " + to_string(s));
}

}  // namespace v0_1
}  // namespace bitladder
