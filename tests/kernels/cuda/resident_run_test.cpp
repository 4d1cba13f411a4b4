// SPDX-License-Identifier: MIT
// Who multiplies what, on the host.
#include <bitladder/kernels/cuda/resident_run.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <vector>

namespace {

using bitladder::cuda::resident_run;

TEST_CASE(
    "every slice of every unit goes to one warp, in order, whatever blocks and warps there are") {
  for (int items : {1, 2, 5, 16, 131, 132, 133, 256, 688})
    for (int paired : {0, 1})
      for (int col_tiles : {1, 4, 5, 16, 43})
        for (int blocks : {1, 7, 78, 132, 144})
          for (int warps : {12, 16}) {
            const int units = items << paired, slices = resident_run::slices_of(col_tiles);
            CHECK(4 * slices >= col_tiles);
            CHECK(4 * (slices - 1) < col_tiles);
            int next = 0, most = 0;  // slices of all units, counted on
            bool in_order = true, whole = true;
            for (int block = 0; block < blocks; ++block)
              for (int warp = 0; warp < warps; ++warp) {
                const resident_run r(items, paired, col_tiles, block, blocks, warp, warps);
                most = r.units > most ? r.units : most;
                // Both units of a pair are in one block.
                whole = whole && (r.begin & paired) == 0 && (r.units & paired) == 0;
                in_order = in_order && r.begin * slices + r.from == next && r.to >= r.from;
                next += r.to - r.from;
              }
            CHECK(in_order);
            CHECK(whole);
            CHECK(next == units * slices);
            CHECK(most == resident_run::most_units(items, paired, blocks));
          }
}

TEST_CASE("warps of a block have the same number of slices but for one") {
  for (int units : {1, 2, 6, 12})
    for (int col_tiles : {4, 16, 43}) {
      int least = 1 << 30, most = 0;
      for (int warp = 0; warp < 16; ++warp) {
        const resident_run r(units, 0, col_tiles, 0, 1, warp, 16);
        least = r.to - r.from < least ? r.to - r.from : least;
        most = r.to - r.from > most ? r.to - r.from : most;
      }
      CHECK(most - least <= 1);
    }
}

}  // namespace
