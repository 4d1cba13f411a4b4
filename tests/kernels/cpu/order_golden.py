# SPDX-License-Identifier: MIT
"""Prints the golden bits of order_test.cpp, with the three rules of kernels/cpu/order.hpp carried
out in exact rational arithmetic and rounded by hand. Run: python3 order_golden.py"""
import math
import struct
from fractions import Fraction


def to_bits(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def to_float(exact):
    """The float nearest to a rational, ties to even (no subnormals or overflow come up here)."""
    if exact == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(exact)))
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - 23)
    return float(round(exact / unit) * unit)  # round() of a Fraction is to even


def dot(w, x):
    lanes = [0.0] * 32
    for c, (a, b) in enumerate(zip(w, x)):
        lanes[c % 32] = to_float(Fraction(a) * Fraction(b) + Fraction(lanes[c % 32]))
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [to_float(Fraction(lanes[l]) + Fraction(lanes[l + half])) for l in range(half)]
    return lanes[0]


def root(n):
    """The float nearest to sqrt(n): the integer root of n * 4^60 is far finer than a float."""
    return to_float(Fraction(math.isqrt(n << 120), 1 << 60))


w = [to_float(Fraction(1, c + 1)) for c in range(100)]
x = [root(c + 1) * (1 if c % 2 == 0 else -1) for c in range(100)]
for count in (1, 33, 100):
    print(count, hex(to_bits(dot(w[:count], x[:count]))))
