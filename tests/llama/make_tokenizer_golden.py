#!/usr/bin/env python3
"""Makes tests/llama/data/tokenizer: small tokenizers of every supported style, and what the
reference implementation gives for them.

    pip install tokenizers==0.23.3
    python3 tests/llama/make_tokenizer_golden.py TEXT.txt

TEXT.txt is any English text of a few hundred kB; the tokenizers are trained on its beginning, so
that another text gives other files of the same worth. texts.json holds the lines as hexadecimal
bytes (some are not UTF-8). <style>.json is a case: "base" names a tokenizer file, "patch" is a JSON
merge patch that makes the tokenizer of it; "ids" and "decoded" go with texts.json line by line;
"random" holds random ids and their text with and without special tokens. canonical_forms.json holds
strings, each with its NFC and its NFD.
"""

import copy
import json
import pathlib
import random
import sys
import unicodedata

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = pathlib.Path(__file__).parent / "data" / "tokenizer"
SEED = 20

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")

LINES = [
    "", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\n\n\n  \n", " \n ", "\t\t x", "a", " a", "a ", "  a  ",
    "Hello, world!", "Hello world", " Hello world ", "hello   world", "hello    world   ", "hello\tworld\t",
    "It's we're I'VE he'Ll they'd I'M don'T 'S 's 'ſ 'K x'sx", "'s", "' s", "''s", "it’s we’re", "O'Neill's",
    "one\ntwo\r\nthree\rfour\n", "trailing newline\n", "  leading", "trailing  ", "a\n  b\n\n    c\n",
    "0 1 12 123 1234 12345 123456 1,234,567.89 3.14e-10 0x1F", "2024-01-31T23:59:59Z", "½ ² Ⅷ ① ٣٤ ९ 1a2b3c 4½",
    "int main(int argc, char** argv) { return argv[0][0] == '\\0'; } // ok",
    "def f(x):\n    return x**2 + 1  # comment\n", "a+=b;c--;d->e;f::g<h>();", "https://example.org/?q=a%20b&c=#d",
    "{\"key\": [1, 2.5, null], \"s\": \"\\u00e9\\n\"}", "<div class=\"x\">text</div>", "...!!!???---***", "~`!@#$%^&*()_+-=[]{}|;':\",./<>?",
    "caf\u00e9 na\u00efve \u00fcber stra\u00dfe \u0141\u00f3d\u017a", "cafe\u0301 nai\u0308ve", "e\u0301\u0302\u0303 \u0301x", "\u1e69 s\u0323\u0307 s\u0307\u0323",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u043b\u043a\u0430", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03ba\u03cc\u03c3\u03bc\u03b5", "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u8fd9\u662f\u6d4b\u8bd5 123",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \uff76\uff9e", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u1112\u1161\u11ab jamo", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0661\u0662\u0663",
    "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a",
    "\U0001f600\U0001f603 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f", "x\U0001f600y", "\U0001f600", "a\u200db\u200cc\u200bd\ufeffe", "\ufeffBOM first",
    "nbsp\u00a0here \u00a0 two\u00a0\u00a0x", "\u2003em\u2003space \u3000ideographic", "line\u2028sep\u2029par\u0085nel\x0bvt\x0cff", "mongolian\u180e vowel \u180e\u180e sep", "soft\u00adhyphen \u2011 \u2013 \u2014 \u2026",
    "\x00nul\x00 \x01\x1f\x7f", "\u0080\u009f\u00a1\u00ff\u0100\u0143", "\u0120 \u010a \u2581 \u2581x x\u2581 \u2581\u2581y", "_ \u2581_ \u00e2\u0096\u0081", "\ue000\uf8ff\ufffd\ufffe\uffff\U000f0000\U0010ffff",
    "x\u20ddy 1\ufe0f\u20e3 \u00aa\u00ba \u2460 \u24b6 \U0001d400\U0001d7d8", "\ufb01 \u212b \u2126 \u01c4", "\u0130I\u0131i \u017f\u212a", "\u02b0\u02bc\u0149 l\u2019eau", "d\u00e9j\u00e0-vu 'tis 'Twas rock'n'roll",
    "<s>", "</s>", "<s>Hello</s>", " <s> Hello </s> ", "<unk>", "a<unk>b", "<s><s></s>", "<s", "s>", "<0x0A>", "x<0x41>y", "<0xZZ>", "<0xC3><0xA9>",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext", "<|begin_of_text|>Hi<|eot_id|>", "<|im_start|>user\nHi<|im_end|>\n", "<|<|eot_id|>|>",
    "<mask>", "a <mask> b", "a  <mask>  b", "a\n\t<mask>\u00a0 b", "<mask><mask>", " <mask> <mask> ", "x<mask>y", "<right>  x", "x  <right>  <right> y", "x  <left>  <left>",
    "word", "a word b", "words", "sword", "word.", "_word", "word_ word", "\u00e9word", "word\u00e9", "word\u0301", "word\u203f", "word\u200d", "1word", "word1", "word word wordword", "word\u24b6", "word\u00b2",
    "New York", "new  york", "NewYork New York City", "abc abcd ab", "abcd", "abcabcd", "tool tool_call tool_call_end", "<tool>x</tool>", "xAy", " Mixed ", "Mixed", "Mi\u2581xed", "a b", "ab b a",
    "unseparated" * 12, "a" * 100, "ab" * 70, " " * 40, "x" + " " * 33 + "y", "\n" * 17, "\t" * 9 + "z", "!" * 21, "=" * 30, "1" * 25, "\u4e16" * 9, "\U0001f600" * 5, "e\u0301" * 6,
    "Copperfield", " Copperfield", "Traddles", " the the The THE tHe", "Mr. Micawber said: \u201cSomething will turn up.\u201d",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
]  # fmt: skip

DAMAGED = [
    b"\xff", b"a\xffb", b"\xc3", b"\xc3(", b"\xe2\x82", b"\xe2\x82x", b"\xe2\x28\xa1", b"\xf0\x9f\x98", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xf0\x9fab",
    b"\xc0\xaf", b"\xe0\x80\xaf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xa0\x80\xed\xb0\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\x80\x80 \xbf", b"ok \xe4\xbd\xa0\xe5\xa5 end", b"\xf1\x80\x80 \xfe\xff", b"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf",
]  # fmt: skip

PARTS = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "'s", "'LL", "a", "the", "word", "Quick", "I", "12", "3456", ".", ",", "!?", "--", "_", "\u00e9", "e\u0301", "\u4e16\u754c", "\u043c\u0438\u0440", "\U0001f600", "\u200d", "\u2581", "<s>", "</s>", "<|endoftext|>", "<mask>", "<unk>", "\u0661", "\u00b2", "\u180e", "\u0085", "(", ")", "ing"]  # fmt: skip


def lines():
    pick = random.Random(SEED)
    mixed = ["".join(pick.choice(PARTS) for _ in range(pick.randint(2, 12))) for _ in range(60)]
    return [s.encode() for s in LINES] + DAMAGED + [s.encode() for s in mixed]


def added(token_id, content, **flags):
    keys = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    return {"id": token_id, "content": content, **keys, **flags}


def template(before, after, special_ids):
    def piece(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    def special(name):
        return {"id": name, "ids": [special_ids[name]], "tokens": [name]}

    a = {"Sequence": {"id": "A", "type_id": 0}}
    b = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [*map(piece, before), a, *map(piece, after)],
        "pair": [*map(piece, before), a, b],
        "special_tokens": {name: special(name) for name in before + after},
    }


def byte_level(regex=True, prefix=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def train_byte_level(pattern, text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        text.splitlines(True),
        trainers.BpeTrainer(
            vocab_size=560,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
        ),
    )
    return json.loads(tokenizer.to_str())


def train_sentencepiece(text):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(
        text.splitlines(),
        trainers.BpeTrainer(
            vocab_size=640,
            show_progress=False,
            special_tokens=["<unk>", "<s>", "</s>", *byte_tokens],
        ),
    )
    result = json.loads(tokenizer.to_str())
    result["added_tokens"] = result["added_tokens"][:3]
    result["pre_tokenizer"] = None
    # As in files converted from SentencePiece: runs of spaces are tokens, and a token comes from
    # every pair that makes it.
    vocab = result["model"]["vocab"]
    for count in (2, 3, 4, 8):
        vocab["\u2581" * count] = len(vocab)
    merges = []
    for token, rank in vocab.items():
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [(rank, left, right) for left, right in pairs if left in vocab and right in vocab]
    merges.sort(key=lambda m: (m[0], vocab[m[1]], vocab[m[2]]))
    result["model"]["merges"] = [[left, right] for _, left, right in merges]
    result["post_processor"] = template(["<s>"], [], {"<s>": 1})
    return result


def merge_patch(target, patch):
    """RFC 7396, as nlohmann::json::merge_patch."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        else:
            target[key] = merge_patch(target.get(key), value)
    return target


def cases(gpt2, llama3, llama2):
    """name -> (base, patch)"""
    end = len(gpt2["model"]["vocab"])
    eot = gpt2["added_tokens"]
    yield "gpt2", "gpt2_base", {}
    yield "gpt2_prefix_space", "gpt2_base", {"pre_tokenizer": byte_level(prefix=True)}
    yield "digits", "gpt2_base", {
        "pre_tokenizer": sequence(
            "pretokenizers", {"type": "Digits", "individual_digits": True}, byte_level()
        )
    }
    yield "digit_runs", "gpt2_base", {
        "pre_tokenizer": sequence(
            "pretokenizers",
            {"type": "Digits", "individual_digits": False},
            split("\u2581", "Removed", kind="String"),
            split("[^\\s]{1,7}", "MergedWithNext"),
            byte_level(regex=False),
        )
    }
    yield "split_merged", "gpt2_base", {
        "pre_tokenizer": sequence(
            "pretokenizers",
            split(r"[\s\h]+", "MergedWithPrevious"),
            split(r"\w+", "MergedWithNext", invert=True),
            split(r"[\p{L}_]", "Contiguous"),
            byte_level(regex=False),
        )
    }
    yield "split_script", "gpt2_base", {
        "pre_tokenizer": sequence(
            "pretokenizers",
            split(r"\p{Han}+|\p{Cyrillic}+|^\S|\S$", "Isolated"),
            split(r"\W+|\h{2}", "Contiguous", invert=True),
            byte_level(regex=False),
        ),
        "added_tokens": [
            *eot,
            added(end, "<mask>", lstrip=True, special=True),
            added(end + 1, "<right>", rstrip=True, normalized=True),
            added(end + 2, "<left>", lstrip=True, rstrip=True),
            added(end + 3, "word", single_word=True),
            added(end + 4, "abc"),
            added(end + 5, "abcd", normalized=True),
            added(end + 6, "tool"),
            added(end + 7, "tool_call", special=True),
            added(end + 8, "  "),
            added(end + 9, "\u4e16\u754c"),
            added(end + 10, "New York", single_word=True, normalized=True, lstrip=True),
        ],
    }

    end = len(llama3["model"]["vocab"])
    names = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    llama3_tokens = [added(end + i, name, special=True) for i, name in enumerate(names)]
    post = template(["<|begin_of_text|>"], [], {"<|begin_of_text|>": end})
    yield "llama3", "llama3_base", {
        "added_tokens": [*llama3["added_tokens"], *llama3_tokens],
        "post_processor": sequence("processors", byte_level(), post),
    }
    yield "qwen2", "llama3_base", {
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": sequence(
            "pretokenizers", split(QWEN2), byte_level(regex=False)
        ),
        "model": {"ignore_merges": False},
        "added_tokens": [
            *llama3["added_tokens"],
            added(end, "<|im_start|>", special=True),
            added(end + 1, "<|im_end|>", special=True),
            added(end + 2, "<tool>"),
        ],
        "post_processor": byte_level(),
    }

    end = len(llama2["model"]["vocab"])
    yield "llama2", "llama2_base", {}
    # Merges across the beginning of a word.
    yield "llama2_crossing", "llama2_base", {
        "model": {
            "vocab": {"e\u2581": end, "e\u2581t": end + 1, "\u2581a\u2581": end + 2},
            "merges": [
                ["e", "\u2581"], ["e\u2581", "t"], *llama2["model"]["merges"], ["\u2581a", "\u2581"]
            ],
        }
    }  # fmt: skip
    yield "llama2_metaspace", "llama2_base", {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False
        },
    }  # fmt: skip
    always = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    yield "metaspace_always", "llama2_base", {
        "normalizer": None,
        "pre_tokenizer": always,
        "decoder": always,
        "post_processor": template(["<s>"], ["</s>"], {"<s>": 1, "</s>": 2}),
        "added_tokens": [
            *llama2["added_tokens"],
            added(end, "<mask>", lstrip=True, special=True),
            added(end + 1, "Mixed", normalized=True),
        ],
    }
    never = {**always, "prepend_scheme": "never"}
    yield "metaspace_never", "llama2_base", {
        "normalizer": None,
        "pre_tokenizer": never,
        "decoder": never,
        "post_processor": None,
    }
    yield "llama2_unknown", "llama2_base", {"model": {"byte_fallback": False, "fuse_unk": False}}
    yield "llama2_fused_unknown", "llama2_base", {"model": {"byte_fallback": False}}
    yield "llama2_no_unknown", "llama2_base", {
        "model": {"byte_fallback": False, "unk_token": None},
        "decoder": None,
    }
    yield "llama2_added", "llama2_base", {
        "normalizer": sequence(
            "normalizers",
            {"type": "Replace", "pattern": {"Regex": "[\\t\u00a0]+"}, "content": " "},
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ),
        "added_tokens": [
            added(0, "<unk>", special=True, normalized=True),
            added(1, "<s>", special=True, normalized=True),
            added(2, "</s>", special=True, rstrip=True),
            added(end, "New York", normalized=True),
            added(end + 1, "word", single_word=True, normalized=True),
            added(end + 2, "<mask>", lstrip=True, rstrip=True, normalized=True),
            added(end + 3, "tool", single_word=True),
        ],
    }


def canonical_forms():
    """Random strings of characters that change in one of the forms or make others change."""
    pick = random.Random(SEED)
    nfc, nfd = normalizers.NFC(), normalizers.NFD()
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    marks = [c for c in points if unicodedata.combining(c)]
    others = [c for c in points if nfd.normalize_str(c) != c and c < "\uac00" or 0x1100 <= ord(c) < 0x1200]
    for number in range(300):
        line = ""
        for _ in range(pick.randint(1, 6)):
            hangul = chr(pick.randrange(0xAC00, 0xD7A4))
            line += pick.choice([pick.choice(others), hangul, nfd.normalize_str(hangul), pick.choice("aeK ")])
            line += "".join(pick.choice(marks if number % 2 else marks[:90]) for _ in range(pick.randint(0, 3)))
        yield [line, nfc.normalize_str(line), nfd.normalize_str(line)]


def main():
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace")[:250_000]
    OUT.mkdir(parents=True, exist_ok=True)

    def write(name, value):
        path = OUT / f"{name}.json"
        path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
        assert path.stat().st_size < 100_000, path

    # Some rare scripts in the training text give the vocabularies characters of several bytes.
    mixed = text + "".join(4 * (line + "\n") for line in LINES if line.isprintable())
    gpt2 = train_byte_level(GPT2, mixed)
    gpt2["pre_tokenizer"] = byte_level()
    gpt2["model"]["merges"] = [" ".join(pair) for pair in gpt2["model"]["merges"]]
    llama3 = train_byte_level(LLAMA3, mixed)
    # Words that no merge makes: they come out only where whole words go before merges.
    for word in ("Copperfield", "\u0120Copperfield", "\u0120Traddles", "\u0120universally", "...!!!???---***"):
        llama3["model"]["vocab"][word] = len(llama3["model"]["vocab"])
    llama3["model"]["ignore_merges"] = True
    # Here every character becomes a token: few of them, for others have to fall back to bytes.
    llama2 = train_sentencepiece(text + 4 * "\ncaf\u00e9 \u4e16\u754c \u043c\u0438\u0440\n")
    bases = {"gpt2_base": gpt2, "llama3_base": llama3, "llama2_base": llama2}
    for name, base in bases.items():
        write(name, base)
    write("canonical_forms", list(canonical_forms()))
    write("texts", [line.hex() for line in lines()])

    texts = [line.decode("utf-8", errors="replace") for line in lines()]
    for name, base, patch in cases(gpt2, llama3, llama2):
        tokenizer = Tokenizer.from_str(json.dumps(merge_patch(copy.deepcopy(bases[base]), patch)))
        ids = [tokenizer.encode(line).ids for line in texts]
        special = [token["id"] for token in json.loads(tokenizer.to_str())["added_tokens"] if token["special"]]

        def plain(ids):
            """Decoded without special tokens. The implementation leaves in those that are normalized,
            because it looks for their normalized text among the special ones; they are taken out here."""
            return tokenizer.decode([id for id in ids if id not in special], False)

        assert name == "llama2_added" or all(plain(line) == tokenizer.decode(line) for line in ids)
        pick = random.Random(SEED)
        size = tokenizer.get_vocab_size()
        byte_ids = [
            id for id in map(tokenizer.token_to_id, (f"<0x{b:02X}>" for b in range(256))) if id
        ] or [id for token, id in sorted(tokenizer.get_vocab().items()) if len(token) == 1]
        samples = []
        for _ in range(40):
            pool = [pick.randrange(size) for _ in range(6)] + pick.sample(byte_ids, 12)
            chosen = [pick.choice(pool) for _ in range(pick.randint(1, 10))]
            samples.append([chosen, plain(chosen), tokenizer.decode(chosen, False)])
        write(
            name,
            {
                "base": base,
                "patch": patch,
                "ids": ids,
                "decoded": [plain(line) for line in ids],
                "random": samples,
            },
        )


if __name__ == "__main__":
    main()
