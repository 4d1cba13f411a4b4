// SPDX-License-Identifier: MIT
// Quantized checkpoints of other projects (Any-Precision LLM, SqueezeLLM) as one interface: linears
// that are read as planes and tables of ours, and tensors that stay as they are. What is long to
// compile is in foreign_checkpoint.cpp. Tested by tests/llama/foreign_test.cpp.
#pragma once

#include <bitladder/core/bitplane.hpp>
#include <bitladder/core/codebook.hpp>
#include <bitladder/core/matrix_view.hpp>
#include <bitladder/core/parallel.hpp>
#include <bitladder/core/sparse_matrix.hpp>
#include <bitladder/io/checkpoint_format.hpp>
#include <bitladder/io/tensor_info.hpp>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace llama {

/// What keeping tables in fp16 changed most.
struct foreign_rounding {
  double largest = 0;  ///< |kept - stored|; 0 if nothing was rounded
  float stored = 0;    ///< the entry that it happened to
  std::string linear;
  int row = 0;
};

/// A linear in our form.
struct foreign_linear {
  bitladder::bitplane_tensor planes;
  bitladder::codebook_ladder tables;
  bitladder::sparse_matrix outliers;  ///< as many as linears() says
};

/// One opened checkpoint. All that opening can check is checked.
class foreign_checkpoint {
 public:
  foreign_checkpoint() = default;
  foreign_checkpoint(const foreign_checkpoint&) = delete;
  foreign_checkpoint& operator=(const foreign_checkpoint&) = delete;
  virtual ~foreign_checkpoint() = default;

  /// "Any-Precision" or "SqueezeLLM".
  virtual const char* format() const = 0;
  /// What errors call it.
  virtual const std::string& path() const = 0;
  /// The files that hold the tensors.
  virtual std::vector<std::filesystem::path> files() const = 0;
  virtual int min_bits() const = 0;
  virtual int max_bits() const = 0;
  virtual const std::vector<bitladder::linear_info>& linears() const = 0;
  /// A linear, converted. May be called from several threads at once.
  /// @throws bitladder::error naming file and tensor
  virtual foreign_linear read(const std::string& linear, bitladder::thread_pool* pool) const = 0;
  /// What rounding the tables of a linear to fp16 changes.
  virtual foreign_rounding rounding(const std::string& linear) const = 0;
  /// Every tensor but planes and tables, in the order of the file.
  virtual std::vector<bitladder::tensor_info> plain_tensors() const = 0;
  /// The bytes of such a tensor in the mapping, at any address.
  virtual bitladder::vector_view<const std::byte> bytes(const std::string& tensor) const = 0;
};

/// Whether a folder says that it holds such a checkpoint.
/// @throws bitladder::error(bad_file) if what would say so is not JSON
bool is_foreign(const std::filesystem::path& folder);

/// Opens a folder, or a file of SqueezeLLM tensors, as what it is.
/// @throws bitladder::error naming the path and what was expected there
std::unique_ptr<foreign_checkpoint> open_foreign(const std::filesystem::path& path);

}  // namespace llama
