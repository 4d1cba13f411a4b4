"""Compare greedy texts of the tool and of transformers on one card, both in fp16, by hand.

usage: check_transformers.py TOOL [TOKENS [MODEL]]      (torch with CUDA, transformers)

MODEL is the bundled one if it is not named. Transformers runs it in float16 on the card; the tool
reads the same weights with --device cuda --bits 16. For every prompt the script prints whether the
texts are equal, and the smallest distance on the way between the likeliest token's logit and the
next one's. Where texts differ it says at which token, and the distance there in float16 and in
float32, both as transformers has them: fp16 logits of 8 to 16 are multiples of 2^-7, so a distance
of that size decides nothing. Exits with 1 if a text differs.

The prompts are some of which the distance stays above 0.05 for 128 tokens of the bundled model.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "Far away, in the land of",
    '"Where are you going?" asked',
    "The king of the country",
    "Then the giant",
    "The doctor shook his head",
]
BUNDLED = pathlib.Path(__file__).parents[3] / "examples/models/small"


@torch.no_grad()
def greedy(model, tokenizer, prompt, count):
    """The tokens, the text after each, and the distance at each."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    past, tokens, texts, gaps = None, [], [], []
    for _ in range(count):
        out = model(ids, past_key_values=past, use_cache=True)
        past = out.past_key_values
        top = out.logits[0, -1].float().topk(2)
        gaps.append((top.values[0] - top.values[1]).item())
        tokens.append(top.indices[0].item())
        texts.append(tokenizer.decode(tokens, skip_special_tokens=True))
        ids = top.indices[:1][None]
    return tokens, texts, gaps


@torch.no_grad()
def distance_after(model, tokenizer, prompt, tokens):
    """Between the two likeliest tokens that follow."""
    ids = tokenizer(prompt, return_tensors="pt").input_ids.to(model.device)
    ids = torch.cat([ids, torch.tensor([tokens], dtype=ids.dtype, device=ids.device)], dim=1)
    top = model(ids).logits[0, -1].float().topk(2).values
    return (top[0] - top[1]).item()


def by_tool(tool, model, prompt, count):
    with tempfile.TemporaryDirectory() as folder:
        row = pathlib.Path(folder) / "row.json"
        subprocess.run([tool, "generate", str(model), "--device", "cuda", "--bits", "16",
                        "--prompt", prompt, "-n", str(count), "-q", "--temperature", "0",
                        "--ignore-end", "--json", str(row)], check=True, stdout=subprocess.DEVNULL)
        return json.loads(row.read_text())[0]["text"]


def main():
    tool = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    folder = pathlib.Path(sys.argv[3]) if len(sys.argv) > 3 else BUNDLED
    tokenizer = AutoTokenizer.from_pretrained(folder)
    half, full = (AutoModelForCausalLM.from_pretrained(folder, dtype=d).eval().cuda()
                  for d in (torch.float16, torch.float32))
    failed = False
    for prompt in PROMPTS:
        tokens, texts, gaps = greedy(half, tokenizer, prompt, count)
        text = by_tool(tool, folder, prompt, count)
        if text == texts[-1]:
            print(f"{prompt!r}: {count} tokens equal, smallest distance {min(gaps):.4f}")
            continue
        failed = True
        at = next(i for i, (a, b) in enumerate(zip(text + "\0", texts[-1] + "\0")) if a != b)
        step = next((i for i, t in enumerate(texts) if len(t) > at), count - 1)
        print(f"{prompt!r}: differs at character {at}, token {step}, distance {gaps[step]:.6f} in "
              f"float16, {distance_after(full, tokenizer, prompt, tokens[:step]):.6f} in float32\n"
              f"  tool:         {text!r}\n  transformers: {texts[-1]!r}")
    print(f"{torch.cuda.get_device_name()}: "
          f"{'texts differ' if failed else f'{len(PROMPTS)} texts of {count} tokens equal'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
