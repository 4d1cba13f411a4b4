#!/usr/bin/env python3
"""Compares our tokenizer with the `tokenizers` package on 10,000 lines, and prints a table.

    pip install tokenizers==0.23.3
    build/tests/llama/bitladder_encode_lines is the program that runs ours
    python3 tests/llama/compare_tokenizers.py --program build/.../bitladder_encode_lines \\
        [--text FILE ...] [--train FOLDER] [--json OUT.json] [NAME=]TOKENIZER ...

TOKENIZER is a tokenizer.json; or OURS,PACKAGE: what our program loads (a GGUF file, say) and the
tokenizer.json that the package loads for it. --train makes four tokenizers out of the texts with
the package, unless they are there: gpt2, llama3 and qwen2 (byte-level, 24,000 tokens) and llama2
(SentencePiece style with byte fallback, 16,000). The lines are the same in every run: scripts of
all the world, code, white space, emoji, numbers, combining marks, damaged UTF-8, line ends, long
words and the tokenizer's own special tokens; with --text a quarter of them are lines of those files.

The package takes no bytes: it gets line.decode(errors="replace"), ours gets the raw bytes, and
replaces what is not UTF-8 by U+FFFD itself, one for each maximal subpart (as Unicode advises and
Python does). Equal means: equal ids, and equal text of them with all special tokens shown. Speeds
are of one thread, the best of five runs: all lines, each alone, and all lines as one text.
"""

import argparse
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402
from tokenizers import Regex  # noqa: E402

COUNT = 10_000
SEED = 4

# First and last code points of blocks; what is unassigned in them is kept, it may come in a text too.
SCRIPTS = {
    "latin": (0x41, 0x24F), "ipa": (0x250, 0x2FF), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x52F),
    "armenian": (0x531, 0x58F), "hebrew": (0x591, 0x5F4), "arabic": (0x600, 0x6FF), "syriac": (0x700, 0x74F),
    "nko": (0x7C0, 0x7FF), "devanagari": (0x900, 0x97F), "bengali": (0x980, 0x9FE), "gurmukhi": (0xA01, 0xA76),
    "gujarati": (0xA81, 0xAFF), "oriya": (0xB01, 0xB77), "tamil": (0xB82, 0xBFA), "telugu": (0xC00, 0xC7F),
    "kannada": (0xC80, 0xCF3), "malayalam": (0xD00, 0xD7F), "sinhala": (0xD81, 0xDF4), "thai": (0xE01, 0xE5B),
    "lao": (0xE81, 0xEDF), "tibetan": (0xF00, 0xFDA), "myanmar": (0x1000, 0x109F), "georgian": (0x10A0, 0x10FF),
    "jamo": (0x1100, 0x11FF), "ethiopic": (0x1200, 0x139F), "cherokee": (0x13A0, 0x13FD), "canadian": (0x1400, 0x167F),
    "runic": (0x16A0, 0x16F8), "khmer": (0x1780, 0x17F9), "mongolian": (0x1800, 0x18AA), "balinese": (0x1B00, 0x1B7E),
    "extended latin": (0x1E00, 0x1EFF), "extended greek": (0x1F00, 0x1FFE), "punctuation": (0x2000, 0x206F),
    "super and subscript": (0x2070, 0x209C), "letterlike": (0x2100, 0x218B), "arrows and maths": (0x2190, 0x22FF),
    "enclosed": (0x2460, 0x24FF), "boxes and dingbats": (0x2500, 0x27BF), "cjk punctuation": (0x3000, 0x303F),
    "hiragana": (0x3041, 0x309F), "katakana": (0x30A0, 0x30FF), "bopomofo": (0x3105, 0x312F), "han": (0x4E00, 0x9FFF),
    "yi": (0xA000, 0xA4C6), "hangul": (0xAC00, 0xD7A3), "compatibility": (0xF900, 0xFAFF), "forms": (0xFB00, 0xFDFF),
    "half width": (0xFF01, 0xFFEE), "gothic": (0x10330, 0x1034A), "brahmi": (0x11000, 0x11075),
    "kaithi": (0x11080, 0x110C2), "chakma": (0x11100, 0x11147), "cuneiform": (0x12000, 0x12399),
    "musical": (0x1D100, 0x1D1E8), "mathematical": (0x1D400, 0x1D7FF), "adlam": (0x1E900, 0x1E959),
    "han extended": (0x20000, 0x2FA1D),
}  # fmt: skip

SPACES = [" "] * 8 + ["  ", "    ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\u200d", "\ufeff"]  # fmt: skip
PEOPLE = [0x1F468, 0x1F469, 0x1F466, 0x1F467, 0x1F9D1, 0x1F475, 0x1F9DB, 0x1F46E]
OBJECTS = [0x2695, 0x1F4BB, 0x1F692, 0x2764, 0x1F680, 0x1F9B0, 0x2642, 0x2640, 0x1F308]
EMOJI = [(0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF), (0x2600, 0x26FF)]  # fmt: skip
ENGLISH = "the of and to in a is it's don't we'll I'm they've he'd she's can't you're that was Copperfield universally truth night morning London quick brown fox jumps over lazy dog hello world Hello World THE AND".split()  # fmt: skip
OPERATORS = "+ - * / % = == != <= >= && || << >> -> :: => += -= ** // ... ?. ! ~ ^ & | @ # $ \\ ` ; , . : ( ) [ ] { } < >".split()
KEYWORDS = "if else for while return def class import from int float const auto void static public fn let mut match None null true lambda yield async await template typename struct SELECT FROM WHERE".split()  # fmt: skip


def letters(pick, kind, count):
    first, last = SCRIPTS[kind]
    return "".join(chr(pick.randint(first, last)) for _ in range(count))


def scripts(pick):
    words = []
    kind = pick.choice(list(SCRIPTS))
    for _ in range(pick.randint(1, 12)):
        if pick.random() < 0.2:
            kind = pick.choice(list(SCRIPTS))
        words.append(letters(pick, kind, pick.randint(1, 9)))
    return pick.choice([" ", " ", "", ", ", "-"]).join(words)


def marks(pick):
    """Letters with marks of every class in any order, and what Unicode's forms compose and reorder."""
    out = ""
    for _ in range(pick.randint(1, 20)):
        out += letters(pick, pick.choice(["latin", "latin", *SCRIPTS]), pick.randint(0, 2))
        for _ in range(pick.choice([0, 1, 1, 2, 3, 5])):
            out += pick.choice(MARKS)
        if pick.random() < 0.2:
            out += unicodedata.normalize("NFD", letters(pick, pick.choice(["hangul", "extended greek", "extended latin"]), 2))
        if pick.random() < 0.3:
            out += pick.choice(SPACES)
    return out


def spaces(pick):
    out = ""
    for _ in range(pick.randint(1, 15)):
        out += pick.choice(SPACES) * pick.choice([1, 1, 2, 3, 4, 8, 17])
        if pick.random() < 0.6:
            out += pick.choice([*ENGLISH, "x", "12", ".", "!?", "\u4e16", "'s", "_"])
    return out


def emoji(pick):
    out = ""
    for _ in range(pick.randint(1, 10)):
        kind = pick.randrange(7)
        if kind == 0:  # a family
            out += "\u200d".join(chr(pick.choice(PEOPLE)) for _ in range(pick.randint(2, 4)))
        elif kind == 1:  # a person with a tone and a trade
            out += chr(pick.choice(PEOPLE)) + chr(pick.randint(0x1F3FB, 0x1F3FF)) + "\u200d" + chr(pick.choice(OBJECTS)) + "\ufe0f"
        elif kind == 2:  # a flag
            out += chr(pick.randint(0x1F1E6, 0x1F1FF)) + chr(pick.randint(0x1F1E6, 0x1F1FF))
        elif kind == 3:  # a keycap
            out += pick.choice("0123456789#*") + "\ufe0f\u20e3"
        elif kind == 4:  # a flag of tags
            out += "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in "gbsct") + "\U000e007f"
        else:
            first, last = pick.choice(EMOJI)
            out += chr(pick.randint(first, last)) + pick.choice(["", "", "\ufe0f", "\ufe0e"])
        out += pick.choice(["", "", " ", "!", pick.choice(ENGLISH)])
    return out


def numbers(pick):
    out = []
    for _ in range(pick.randint(1, 10)):
        n = pick.randrange(10 ** pick.randint(1, 18))
        forms = [str(n), f"{n:,}", f"{n / 1000:.4f}", f"-{n}", f"{n:x}", f"0x{n:X}", f"{n:e}", f"{n}%", f"${n}.99", f"{n}th"]
        forms += [f"{n % 24:02}:{n % 60:02}:{n % 59:02}", f"20{n % 100:02}-{n % 12 + 1:02}-{n % 28 + 1:02}", f"v{n % 9}.{n % 10}.{n % 11}"]
        digits = chr(pick.choice([0x660, 0x6F0, 0x966, 0xE50, 0xFF10, 0x1D7CE, 0x104A0, 0x1E950]))
        forms.append("".join(chr(ord(digits) + int(d)) for d in str(n)))
        forms.append(pick.choice("\u00bd\u00b2\u2155\u2167\u2460\u3007\u4e03\u0bf0\u2070\u09f4\u137c") * pick.randint(1, 4))
        out.append(pick.choice(forms))
    return pick.choice([" ", ", ", "", "+", "\n"]).join(out)


def code(pick):
    out = ""
    for _ in range(pick.randint(1, 8)):
        out += pick.choice(["", "  ", "    ", "\t", "\t\t", "        "]) * pick.randint(0, 3)
        for _ in range(pick.randint(1, 8)):
            name = pick.choice(ENGLISH).strip("'") + pick.choice(["", "_", "Id", "2", "__", "XYZ"]) + pick.choice(["", *ENGLISH])
            out += pick.choice([name, name, pick.choice(KEYWORDS), str(pick.randrange(1000)), f'"{name}\\n"', f"'{name}'", f"// {name}", f"<{name}/>"])
            out += pick.choice(["", " ", " "]) + pick.choice(OPERATORS) + pick.choice(["", "", " "])
        out += pick.choice(["\n", "\n", "\r\n", " \n", ";\n", "\n\n"])
    return out


def ends(pick):
    """Lines with every kind of end."""
    words = [pick.choice(ENGLISH) for _ in range(pick.randint(1, 12))]
    return "".join(w + pick.choice(["\r\n", "\n", "\r", "\r\n\r\n", "\n\r", " \r\n", "\r\n ", " "]) for w in words)


def long_words(pick):
    kind = pick.randrange(5)
    size = pick.choice([100, 300, 1000, 3000])
    if kind == 0:
        return pick.choice(["a", "ab", "unseparated", "=", " ", "\n", "\u4e16", "\U0001f600", "e\u0301", "0", "\u2581"]) * size
    if kind == 1:
        return "".join(pick.choice("abcdefghijklmnopqrstuvwxyzABCDEF") for _ in range(size))
    if kind == 2:
        return "".join(pick.choice("0123456789abcdef") for _ in range(size))
    if kind == 3:
        return letters(pick, pick.choice(list(SCRIPTS)), size)
    return "".join(pick.choice(ENGLISH) for _ in range(size // 5))


def anything(pick):
    """Code points of all planes."""
    points = [pick.choice([pick.randrange(0x80), pick.randrange(0x3000), pick.randrange(0x10000), pick.randrange(0x110000)]) for _ in range(pick.randint(1, 30))]  # fmt: skip
    return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def damaged(pick):
    kind = pick.randrange(4)
    if kind == 0:
        return bytes(pick.randrange(256) for _ in range(pick.randint(1, 40)))
    good = (scripts(pick) + emoji(pick)).encode()
    if kind == 1:  # cut
        start = pick.randrange(len(good))
        return good[start : start + pick.randint(1, len(good))]
    broken = bytearray(good)
    for _ in range(pick.randint(1, 6)):
        at = pick.randrange(len(broken))
        if kind == 2:
            broken[at] = pick.choice([0x80, 0xBF, 0xC0, 0xC2, 0xE0, 0xED, 0xEF, 0xF0, 0xF4, 0xF5, 0xFF, pick.randrange(256)])
        else:
            broken[at:at] = pick.choice([b"\xed\xa0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf4\x90\x80\x80", b"\xf0\x9f", b"\xe4\xb8", b"\xff", b"\x80"])
    return bytes(broken)


def special_tokens(pick, specials):
    out = ""
    for _ in range(pick.randint(1, 8)):
        token = pick.choice(specials)
        kind = pick.randrange(8)
        if kind == 0:
            token = token[: pick.randint(0, len(token))]
        elif kind == 1:
            token = token.upper()
        out += token + pick.choice(["", "", " ", "\n", "  ", pick.choice(ENGLISH), "\u4e16", "\u0301", "<", ">", "|"])
        if pick.random() < 0.3:
            out += pick.choice(SPACES)
    return out


def english(pick):
    return " ".join(pick.choice(ENGLISH) + pick.choice(["", "", "", ",", ".", "!", "?\u201d", "'s", "\u2019s"]) for _ in range(pick.randint(1, 30)))


MARKS = [chr(c) for c in range(0x300, 0x20000) if unicodedata.combining(chr(c))] + ["\u0327", "\u0301", "\u0308"] * 60
KINDS = [scripts, scripts, scripts, marks, spaces, emoji, numbers, code, ends, anything, damaged, english]


def make_lines(specials, texts):
    """10,000 lines of bytes, the same for the same arguments."""
    pick = random.Random(SEED)
    quoted = [line for text in texts for line in text.splitlines(True) if line.strip()]
    lines = [b"", b" ", b"\n"]
    while len(lines) < COUNT:
        n = len(lines)
        if quoted and n % 4 == 0:
            line = pick.choice(quoted)
        elif n % 50 == 1:
            line = long_words(pick)
        elif n % 12 == 5:
            line = special_tokens(pick, specials)
        else:
            line = pick.choice(KINDS)(pick)
        lines.append(line if isinstance(line, bytes) else line.encode())
    return lines


def byte_level(pattern, texts):
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=24_000,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines(True)), trainer)
    return tokenizer


def sentence_pieces(texts):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=16_000, show_progress=False, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)])
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines()), trainer)
    result = json.loads(tokenizer.to_str())
    result["added_tokens"] = result["added_tokens"][: len(special)]
    result["pre_tokenizer"] = None
    # As in files converted from SentencePiece: runs of spaces are tokens, and a token comes of every
    # pair that makes it.
    vocab = result["model"]["vocab"]
    for count in range(2, 17):
        vocab["\u2581" * count] = len(vocab)
    merges = []
    for token, rank in vocab.items():
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [(rank, *pair) for pair in pairs if pair[0] in vocab and pair[1] in vocab]
    merges.sort(key=lambda m: (m[0], vocab[m[1]], vocab[m[2]]))
    result["model"]["merges"] = [[left, right] for _, left, right in merges]
    return Tokenizer.from_str(json.dumps(result))


def train(folder, texts):
    """The paths of the four tokenizers, which are made if they are not there."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    from make_tokenizer_golden import GPT2, LLAMA3, QWEN2

    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.json" for name in ("gpt2", "llama3", "qwen2", "llama2")}
    for name, pattern in (("gpt2", GPT2), ("llama3", LLAMA3), ("qwen2", QWEN2)):
        if not paths[name].exists():
            tokenizer = byte_level(pattern, texts)
            if name == "gpt2":
                tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            if name == "qwen2":
                tokenizer.normalizer = normalizers.NFC()
            result = json.loads(tokenizer.to_str())
            result["model"]["ignore_merges"] = name == "llama3"
            paths[name].write_text(json.dumps(result))
    if not paths["llama2"].exists():
        sentence_pieces(texts).save(str(paths["llama2"]))
    return [f"{name}={path}" for name, path in paths.items()]


def best_of_five(call):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def run_ours(program, path, lines):
    """[(ids, text)] and the seconds of both ways."""
    with tempfile.TemporaryDirectory() as folder:
        there, back = pathlib.Path(folder, "in"), pathlib.Path(folder, "out")
        there.write_bytes(b"".join(struct.pack("<I", len(line)) + line for line in lines))
        done = subprocess.run([program, path, there, back], check=True, capture_output=True, text=True)
        sys.stderr.write(done.stderr)
        answer = back.read_bytes()
    at, results = 0, []
    while at < len(answer):
        (count,) = struct.unpack_from("<I", answer, at)
        ids = struct.unpack_from(f"<{count}i", answer, at + 4)
        at += 4 + 4 * count
        (size,) = struct.unpack_from("<I", answer, at)
        results.append((list(ids), answer[at + 4 : at + 4 + size].decode()))
        at += 4 + size
    return results, [float(x) for x in done.stdout.split()[:2]]


def compare(name, ours, theirs, options, texts):
    tokenizer = Tokenizer.from_file(theirs)
    added = json.loads(pathlib.Path(theirs).read_text()).get("added_tokens") or []
    lines = make_lines([t["content"] for t in added][:200] + ["<s>", "</s>", "<|endoftext|>", "<0x0A>", "\u2581"], texts)
    results, (our_lines, our_text) = run_ours(options.program, ours, lines)
    strings = [line.decode(errors="replace") for line in lines]
    differences = []
    for number, (string, (ids, text)) in enumerate(zip(strings, results, strict=True)):
        expected = tokenizer.encode(string).ids
        decoded = tokenizer.decode(expected, skip_special_tokens=False)
        if ids != expected or text != decoded:
            differences.append((number, lines[number], expected, ids, decoded, text))
    for number, line, expected, ids, decoded, text in differences[: options.show]:
        first = next((i for i, (a, b) in enumerate(zip(expected, ids)) if a != b), min(len(ids), len(expected)))
        print(f"{name}, line {number}: {line[:300]!r}", file=sys.stderr)
        if ids != expected:
            show = lambda part: [(i, tokenizer.id_to_token(i)) for i in part[max(0, first - 2) : first + 6] if i >= 0]  # noqa: E731
            print(f"  package {show(expected)}\n  ours    {show(ids)}", file=sys.stderr)
        else:
            print(f"  decoded by the package {decoded[:200]!r}\n  by ours                {text[:200]!r}", file=sys.stderr)
    size = sum(len(line) for line in lines) / 1e6
    whole = "".join(string + "\n" for string in strings)
    return {
        "tokenizer": name,
        "vocabulary": tokenizer.get_vocab_size(),
        "lines": len(lines),
        "equal": len(lines) - len(differences),
        "megabytes": round(size, 3),
        "lines_mb_s": round(size / our_lines, 2),
        "package_lines_mb_s": round(size / best_of_five(lambda: tokenizer.encode_batch(strings)), 2),
        "text_mb_s": round(size / our_text, 2),
        "package_text_mb_s": round(size / best_of_five(lambda: tokenizer.encode(whole)), 2),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--text", nargs="*", default=[], type=pathlib.Path)
    parser.add_argument("--train", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path, help="the rows of the table as JSON")
    parser.add_argument("--show", type=int, default=5, help="differing lines to print for each")
    parser.add_argument("tokenizers", nargs="*")
    options = parser.parse_args()
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in options.text]
    wanted = list(options.tokenizers) + (train(options.train, texts) if options.train else [])
    print("| tokenizer | tokens | lines | equal | lines: ours, package (MB/s) | one text: ours, package (MB/s) |")
    print("|---|---|---|---|---|---|")
    rows = []
    for one in wanted:
        name, _, path = one.rpartition("=")
        ours, _, theirs = path.partition(",")
        row = compare(name or pathlib.Path(path).stem, ours, theirs or ours, options, texts)
        rows.append(row)
        print(
            f"| {row['tokenizer']} | {row['vocabulary']} | {row['lines']} | {row['equal']} "
            f"| {row['lines_mb_s']}, {row['package_lines_mb_s']} | {row['text_mb_s']}, {row['package_text_mb_s']} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["equal"] != row["lines"] for row in rows))


if __name__ == "__main__":
    main()
