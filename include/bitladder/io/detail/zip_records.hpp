// SPDX-License-Identifier: MIT
// The records of a zip archive of stored entries, as bytes: what stands before an entry's data, and
// the directory behind all of them. Names are UTF-8; sizes and places past 32 bits go to ZIP64
// fields. Reader and writer share the signatures. Tested by tests/io/zip_archive_test.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace bitladder {
inline namespace v0_1 {
namespace detail {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "zip fields are little-endian");

inline constexpr std::uint32_t zip_local_signature = 0x04034b50;
inline constexpr std::uint32_t zip_central_signature = 0x02014b50;
inline constexpr std::uint32_t zip_end_signature = 0x06054b50;
inline constexpr std::uint32_t zip64_end_signature = 0x06064b50;
inline constexpr std::uint32_t zip64_locator_signature = 0x07064b50;
inline constexpr std::size_t zip_local_size = 30;
inline constexpr std::size_t zip_central_size = 46;
inline constexpr std::size_t zip_end_size = 22;
inline constexpr std::size_t zip64_end_size = 56;
inline constexpr std::size_t zip64_locator_size = 20;
inline constexpr std::uint16_t zip64_extra = 0x0001;
/// In a 32-bit field: the value stands in the ZIP64 field.
inline constexpr std::uint32_t zip_see_zip64 = 0xffffffffu;

/// The number at byte `at`, which the caller has made sure is there.
template <class T>
T load_number(std::string_view bytes, std::uint64_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

template <class T>
void append_number(std::string& bytes, T value) {
  char raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  bytes.append(raw, sizeof value);
}

/// One entry to be written.
struct zip_record {
  std::string name;
  std::uint64_t size = 0;
  std::uint32_t crc = 0;
  std::uint64_t header = 0;  ///< where its local header stands in the file
};

/// The bytes before an entry's data, padded so that the data begins at a multiple of `alignment`;
/// their number does not depend on the sum.
/// @param zip64_from values from here on go to ZIP64 fields; below the real limit only in tests
inline std::string zip_local_header(const zip_record& r, std::uint64_t alignment,
                                    std::uint64_t zip64_from = zip_see_zip64) {
  const bool wide = r.size >= zip64_from;
  std::string extra;
  if (wide) {
    append_number<std::uint16_t>(extra, zip64_extra);
    append_number<std::uint16_t>(extra, 16);
    append_number<std::uint64_t>(extra, r.size);
    append_number<std::uint64_t>(extra, r.size);
  }
  const std::uint64_t unpadded = r.header + zip_local_size + r.name.size() + extra.size();
  std::uint64_t pad = (alignment - unpadded % alignment) % alignment;
  if (pad > 0 && pad < 4) pad += alignment;  // a field of its own takes four bytes
  if (pad > 0) {
    append_number<std::uint16_t>(extra, 0x4246);  // the id that PyTorch gives to its padding
    append_number<std::uint16_t>(extra, static_cast<std::uint16_t>(pad - 4));
    extra.append(static_cast<std::size_t>(pad - 4), 'Z');
  }
  std::string out;
  append_number(out, zip_local_signature);
  append_number<std::uint16_t>(out, wide ? 45 : 20);  // version needed
  append_number<std::uint16_t>(out, 1u << 11);        // names are UTF-8
  append_number<std::uint16_t>(out, 0);               // stored
  append_number<std::uint32_t>(out, 0x00210000);      // 1980-01-01: same input, same file
  append_number(out, r.crc);
  for (int i = 0; i < 2; ++i)
    append_number(out, wide ? zip_see_zip64 : static_cast<std::uint32_t>(r.size));
  append_number(out, static_cast<std::uint16_t>(r.name.size()));
  append_number(out, static_cast<std::uint16_t>(extra.size()));
  return out + r.name + extra;
}

/// All that follows the last entry, ZIP64 end record included whether needed or not.
/// @param at where it stands in the file
inline std::string zip_directory(const std::vector<zip_record>& records, std::uint64_t at,
                                 std::uint64_t zip64_from = zip_see_zip64) {
  std::string out;
  for (const zip_record& r : records) {
    std::string extra;
    const bool wide = r.size >= zip64_from, distant = r.header >= zip64_from;
    if (wide || distant) {
      append_number<std::uint16_t>(extra, zip64_extra);
      append_number(extra, static_cast<std::uint16_t>((wide ? 16 : 0) + (distant ? 8 : 0)));
      for (int i = 0; i < 2 && wide; ++i) append_number<std::uint64_t>(extra, r.size);
      if (distant) append_number<std::uint64_t>(extra, r.header);
    }
    append_number(out, zip_central_signature);
    append_number<std::uint16_t>(out, 45);  // version made by
    append_number<std::uint16_t>(out, extra.empty() ? 20 : 45);
    append_number<std::uint16_t>(out, 1u << 11);  // names are UTF-8
    append_number<std::uint16_t>(out, 0);         // stored
    append_number<std::uint32_t>(out, 0x00210000);
    append_number(out, r.crc);
    for (int i = 0; i < 2; ++i)
      append_number(out, wide ? zip_see_zip64 : static_cast<std::uint32_t>(r.size));
    append_number(out, static_cast<std::uint16_t>(r.name.size()));
    append_number(out, static_cast<std::uint16_t>(extra.size()));
    out.append(10, '\0');  // no comment, first disk, no attributes
    append_number(out, distant ? zip_see_zip64 : static_cast<std::uint32_t>(r.header));
    out += r.name + extra;
  }
  const std::uint64_t size = out.size(), count = records.size();
  append_number(out, zip64_end_signature);
  append_number<std::uint64_t>(out, zip64_end_size - 12);
  append_number<std::uint16_t>(out, 45);
  append_number<std::uint16_t>(out, 45);
  append_number<std::uint64_t>(out, 0);  // this disk and the directory's
  append_number(out, count);
  append_number(out, count);
  append_number(out, size);
  append_number(out, at);
  append_number(out, zip64_locator_signature);
  append_number<std::uint32_t>(out, 0);
  append_number(out, at + size);
  append_number<std::uint32_t>(out, 1);
  const auto narrow = [zip64_from](std::uint64_t v) {
    return v >= zip64_from || v >= zip_see_zip64 ? zip_see_zip64 : static_cast<std::uint32_t>(v);
  };
  append_number(out, zip_end_signature);
  append_number<std::uint32_t>(out, 0);
  const std::uint16_t few =
      static_cast<std::uint16_t>(count >= zip64_from || count >= 0xffffu ? 0xffffu : count);
  append_number(out, few);
  append_number(out, few);
  append_number(out, narrow(size));
  append_number(out, narrow(at));
  append_number<std::uint16_t>(out, 0);
  return out;
}

}  // namespace detail
}  // namespace v0_1
}  // namespace bitladder
