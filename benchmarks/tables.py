#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Make the tables of benchmarks/README.md and README.md from benchmarks/results/*.json.

    tables.py           rewrite them
    tables.py --check   exit 1 if one is not what the results say

A table stands between two comments. The first names the file and the columns, one "key | heading | format" a
line; "where key = value" (or !=, <=, >=) keeps only the matching rows, "source" ends the table with machine, date
and commit:

    <!-- table results/x.json
    where method = exact
    bits | bits | d
    seconds | seconds | .2f
    source
    -->
    ...
    <!-- end -->

"across key | heading | cell" makes a column of every value of a key: rows that agree in the other columns become
one. {} in the heading is the value, and the cell is a Python format string over the row, as in

    across m | M = {} | {us:.1f} ({copy_fraction:.2f})
"""
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- table (\S+)\n(.*?)-->\n)(.*?)(<!-- end -->)", re.S)


def shown(value, form):
    if value is None or value == "":
        return "-"
    if form == "bits":
        return "unquantized" if value == 0 else str(int(value))
    if form == "bytes":
        for unit in ("B", "kB", "MB", "GB"):
            if value < 999.5 or unit == "GB":
                return f"{value:.3g} {unit}"
            value /= 1000
    if form == "s":
        return str(value).replace("<", "&lt;")
    return format(int(value) if form == "d" else value, form)


def matches(value, sign, wanted):
    if sign in ("=", "!="):
        return (str(value) == wanted) == (sign == "=")
    return value is not None and (value <= float(wanted) if sign == "<=" else value >= float(wanted))


def table(name, spec):
    data = json.loads((ROOT / "benchmarks" / name).read_text())
    rows, columns, across, source = data["rows"], [], None, False
    for line in spec.strip().splitlines():
        if line.startswith("where "):
            key, sign, wanted = re.match(r"where (\S+) ([!<>]?=) (.*)", line).groups()
            rows = [r for r in rows if matches(r.get(key), sign, wanted)]
        elif line.strip() == "source":
            source = True
        elif line.startswith("across "):
            across = [part.strip() for part in line[len("across "):].split("|")]
        else:
            columns.append([part.strip() for part in line.split("|")])
    if not rows:
        raise SystemExit(f"{name}: no row left by\n{spec}")
    head = [c[1] for c in columns]
    body = [[shown(r.get(c[0]), c[2]) for c in columns] for r in rows]
    if across:
        key, heading, cell = across
        values = list(dict.fromkeys(r[key] for r in rows))
        head += [heading.replace("{}", str(v)) for v in values]
        merged = {}  # what a line begins with -> its cells
        for r, start in zip(rows, body):
            cells = merged.setdefault(tuple(start), dict.fromkeys(values, "-"))
            if cells[r[key]] != "-":
                raise SystemExit(f"{name}: two rows for {start}, {key} = {r[key]}")
            cells[r[key]] = cell.format_map(r)
        body = [list(start) + list(cells.values()) for start, cells in merged.items()]
    lines = ["| " + " | ".join(line) + " |" for line in [head] + body]
    lines.insert(1, "|" + "---|" * len(head))
    if source:
        machine = data["machine"]
        where = f"{machine['cores']} cores of {machine['cpu']}" + (f", {machine['gpu']}" if machine.get("gpu") else "")
        lines += ["", f"`{data['command']}` on {where}; {data['date']}, commit {data['commit']}."]
    return "\n".join(lines) + "\n"


def main():
    stale = []
    for file in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        text = file.read_text()
        made = BLOCK.sub(lambda m: m[1] + table(m[2], m[3]) + m[5], text)
        if made != text:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.write_text(made)
    if "--check" in sys.argv and stale:
        raise SystemExit("not what benchmarks/results says, run benchmarks/tables.py: " + ", ".join(stale))
    print("tables: " + (", ".join(stale) + " rewritten" if stale else "up to date"))


if __name__ == "__main__":
    main()
