#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How far the seeds of flash1dkmeans, which Any-Precision LLM uses, are from the optimum.

    pip install flash1dkmeans numpy && python3 benchmarks/published_seed.py

Rows of 4096 Student-t values (4 degrees of freedom) with chi-squared weights, as quantize_bench has them;
the optimum is found here by the plain dynamic program.
"""
import flash1dkmeans
import numpy as np


def prefix(values):
    return np.concatenate([[0.0], np.cumsum(values)])


def optimum(x, w, clusters):
    """The least weighted squared error, by divide and conquer over the monotone best starts."""
    weight, total, n = prefix(w), prefix(w * x), len(x)
    gain = np.full(n + 1, -np.inf)
    gain[0] = 0
    for _ in range(clusters):
        following = np.full(n + 1, -np.inf)
        todo = [(1, n, 0, n - 1)]
        while todo:
            low, high, first, last = todo.pop()
            if low > high:
                continue
            middle = (low + high) // 2
            starts = np.arange(first, min(last, middle - 1) + 1)
            value = gain[starts] + (total[middle] - total[starts]) ** 2 / (weight[middle] - weight[starts])
            best = int(np.argmax(value))
            following[middle] = value[best]
            todo += [(low, middle - 1, first, starts[best]), (middle + 1, high, starts[best], last)]
        gain = following
    return (w * x * x).sum() - gain[n]


def main():
    random = np.random.default_rng(0)
    for bits, rows in ((3, 24), (4, 10)):
        ratios = []
        for row in range(rows):
            x = np.sort((random.standard_t(4, 4096) * 0.02).astype(np.float32))
            w = random.chisquare(1, len(x))
            d = x.astype(np.float64)
            centres, borders = flash1dkmeans.numba_kmeans_1d_k_cluster(
                x, 2**bits, 50, np.cumsum(w), np.cumsum(w * d), np.cumsum(w * d * d), 0, len(x), row)
            error = sum((w[a:b] * (d[a:b] - c) ** 2).sum() for c, a, b in zip(centres, borders, borders[1:]))
            ratios.append(error / optimum(d, w, 2**bits))
        print(f"{bits} bits: {100 * np.mean(ratios) - 100:.1f}% above the optimum on average of {rows} rows, "
              f"{100 * min(ratios) - 100:.1f}% to {100 * max(ratios) - 100:.1f}%")


if __name__ == "__main__":
    main()
