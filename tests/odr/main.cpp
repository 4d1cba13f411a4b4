// SPDX-License-Identifier: MIT
// Both units must have linked, and must share the library's inline functions.
using address = void (*)();
address one();
address two();

int main() { return one() == two() ? 0 : 1; }
