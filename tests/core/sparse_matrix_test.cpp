// SPDX-License-Identifier: MIT
#include <bitladder/core/pack.hpp>
#include <bitladder/core/sparse_matrix.hpp>

#include <support/files.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

using namespace bitladder;
using support::error_of;

namespace {

/// 4 x 10: row 0 {1: 0.5, 9: -2}, row 1 none, row 2 {0: 65504}, row 3 {3: 0, 4: 1, 5: -1}.
struct parts {
  int rows = 4, cols = 10;
  std::vector<std::int32_t> offsets = {0, 2, 2, 3, 6}, columns = {1, 9, 0, 3, 4, 5};
  std::vector<fp16_t> values;
  parts() {
    for (const float v : {0.5f, -2.f, 65504.f, 0.f, 1.f, -1.f}) values.push_back(to_fp16(v));
  }
  sparse_matrix matrix() const { return {rows, cols, offsets, columns, values}; }
  std::string fault() const {
    return error_of([&] { static_cast<void>(matrix()); }).text;
  }
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a sparse matrix has the entries it was made of, row by row") {
  const sparse_matrix m = parts().matrix();
  const sparse_view v = m.view();
  CHECK(v.rows() == 4);
  CHECK(v.cols() == 10);
  CHECK(v.count() == 6);
  CHECK(m.count() == 6);
  CHECK_FALSE(v.empty());
  CHECK(v.begin(1) == 2);
  CHECK(v.end(1) == 2);
  CHECK(v.begin(3) == 3);
  CHECK(v.end(3) == 6);
  CHECK(v.columns()[v.begin(2)] == 0);
  CHECK(to_float(v.values()[1]) == -2.f);
  CHECK(v.bytes() == 5 * 4 + 6 * 6);
}

TEST_CASE("a sparse matrix may be without entries, rows or columns") {
  CHECK(sparse_view().empty());
  CHECK(sparse_view().count() == 0);
  CHECK(sparse_matrix().view().empty());
  const sparse_matrix none(7, 3);
  CHECK(none.view().empty());
  CHECK(none.view().end(6) == 0);
  CHECK(none.view().bytes() == 0);
  CHECK(find_fault(none.view(), 0).code == status::ok);
  CHECK(sparse_matrix(0, 0, {0}, {}, {}).empty());
  CHECK(sparse_matrix(3, 0, {0, 0, 0, 0}, {}, {}).empty());
  CHECK(error_of([] { sparse_matrix(-1, 3); }).code == status::invalid_argument);
}

TEST_CASE("a lie in offsets, columns or values is found and named") {
  const auto with = [](auto&& change) {
    parts p;
    change(p);
    return p.fault();
  };
  CHECK(with([](parts&) {}).empty());
  CHECK(contains(with([](parts& p) { p.offsets[0] = 1; }), "row 0: expected offset 0, found 1"));
  CHECK(contains(with([](parts& p) { p.offsets[2] = 1; }), "row 1: expected an end from 2 to 6"));
  CHECK(contains(with([](parts& p) { p.offsets[2] = -5; }), "row 1: expected an end from 2"));
  CHECK(contains(with([](parts& p) { p.offsets[1] = 7; }), "row 0: expected an end from 0 to 6"));
  CHECK(contains(with([](parts& p) { p.offsets[4] = 5; }), "offsets that end at 6, found 5"));
  CHECK(contains(with([](parts& p) { p.offsets[4] = 1 << 30; }), "row 3: expected an end"));
  CHECK(contains(with([](parts& p) { p.offsets.pop_back(); }), "an offset more than rows"));
  CHECK(contains(with([](parts& p) { p.values.pop_back(); }), "5 values"));
  CHECK(contains(with([](parts& p) { p.columns[0] = -1; }), "row 0: expected columns that rise"));
  CHECK(contains(with([](parts& p) { p.columns[5] = 10; }), "below 10, found 10 after 4"));
  CHECK(contains(with([](parts& p) { p.columns[4] = 3; }), "found 3 after 3"));
  CHECK(contains(with([](parts& p) { p.columns[4] = 2; }), "found 2 after 3"));
  CHECK(with([](parts& p) { p.columns[2] = 9; }).empty());  // may fall from row to row
  for (const int bad : {0x7c00, 0xfc00, 0x7e00})
    CHECK(contains(with([&](parts& p) { p.values[1].bits = static_cast<std::uint16_t>(bad); }),
                   "row 0: column 9: expected a finite value"));
  const parts p;
  CHECK(find_fault({nullptr, p.columns.data(), p.values.data(), 4, 10}, 6).code ==
        status::invalid_argument);
  CHECK(find_fault({p.offsets.data(), nullptr, p.values.data(), 4, 10}, 6).code ==
        status::invalid_argument);
  CHECK(find_fault({p.offsets.data(), p.columns.data(), p.values.data(), -4, 10}, 6).code ==
        status::invalid_argument);
  CHECK(find_fault({p.offsets.data(), p.columns.data(), p.values.data(), 4, 10}, 5).code ==
        status::bad_file);
}

TEST_CASE("entries of a row and column group must carry one code, those of others another") {
  const sparse_matrix m = parts().matrix();
  std::vector<std::uint8_t> codes(40, 9);
  codes[1] = codes[9] = 5;
  codes[33] = codes[34] = codes[35] = 2;
  const auto fault = [&](int groups) {
    const bitplane_tensor planes = pack(matrix_view<const std::uint8_t>(codes.data(), 4, 10), 4);
    return find_code_fault(m.view(), planes.view(), groups);
  };
  CHECK(fault(1).code == status::ok);
  CHECK(fault(2).code == status::ok);
  codes[9] = 4;
  CHECK(fault(1).text == "row 0, column 9: expected code 5 as in column 1, found 4");
  CHECK(fault(2).code == status::ok);  // the two are in different groups
  codes[34] = 3;
  CHECK(fault(2).text == "row 3, column 4: expected code 2 as in column 3, found 3");
  CHECK(find_code_fault({}, bitplane_view(), 1).code == status::ok);
}
