# SPDX-License-Identifier: MIT
"""Train a small Llama on a folder of plain text and save it as a Hugging Face folder.

    pip install torch transformers tokenizers
    python3 train.py TEXT_DIR OUT_DIR [--held-out FILE] [--steps 16000]

TEXT_DIR is searched for *.txt. The held-out file, by default the last one in alphabetical order, is
left out of training and scored every tenth of the way; the best state so far is what OUT_DIR holds.
One GPU is used if there is one.
"""
import argparse
import contextlib
import math
import pathlib
import re
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

END_OF_TEXT = "<|endoftext|>"


def paragraphs(text):
    """Join hard-wrapped lines; keep one blank line between paragraphs."""
    blocks = (re.sub(r"\s*\n\s*", " ", block).strip() for block in re.split(r"\n\s*\n", text))
    return "\n\n".join(block for block in blocks if block)


def train_tokenizer(texts, vocabulary):
    """Byte-level BPE; the end-of-text token is id 0 and also begins every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (text[:200_000] for text in texts),
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END_OF_TEXT],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def encode(tokenizer, texts, device):
    pieces = [text[i:i + 500_000] for text in texts for i in range(0, len(text), 500_000)]
    ids = [i for encoding in tokenizer.encode_batch(pieces) for i in [0] + encoding.ids]
    return torch.tensor(ids, device=device)


def autocast(device):
    return torch.autocast(device, torch.bfloat16) if device == "cuda" else contextlib.nullcontext()


@torch.no_grad()
def perplexity(model, ids, sequence, device):
    """Non-overlapping windows; the tail shorter than a window is dropped."""
    model.eval()
    windows = ids[: len(ids) // sequence * sequence].view(-1, sequence)
    with autocast(device):
        losses = [model(w, labels=w).loss.item() * len(w) for w in windows.split(32)]
    model.train()
    return math.exp(sum(losses) / len(windows))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--held-out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--feed-forward", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    return parser.parse_args()


def main():
    a = parse()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files = sorted(a.texts.glob("*.txt"))
    held_out_file = (a.held_out or (files[-1] if files else None))
    training = [f for f in files if not f.samefile(held_out_file)]
    if not training:
        raise SystemExit(f"{a.texts}: expected at least one *.txt beside the held-out file, found {len(files)} in all")
    texts = [paragraphs(f.read_text(errors="ignore")) for f in training]
    tokenizer = train_tokenizer(texts, a.vocabulary)
    ids = encode(tokenizer, texts, device)
    held_out = encode(tokenizer, [paragraphs(held_out_file.read_text(errors="ignore"))], device)
    for name, t in (("training text", ids), (str(held_out_file), held_out)):
        if len(t) <= a.sequence:
            raise SystemExit(f"{name}: expected more than {a.sequence} tokens, found {len(t)}")

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=a.hidden, intermediate_size=a.feed_forward,
        num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.kv_heads,
        max_position_embeddings=2 * a.sequence, rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0)).to(device)
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
         {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}],
        lr=a.learning_rate, betas=(0.9, 0.95), fused=device == "cuda")
    step_model = torch.compile(model) if device == "cuda" else model
    best, start = math.inf, time.time()
    for step in range(a.steps):
        # Warm up over 200 steps, then a cosine down to a twentieth.
        rate = a.learning_rate * min(1, (step + 1) / 200)
        rate *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / a.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        at = torch.randint(0, len(ids) - a.sequence, (a.batch, 1), device=device)
        batch = ids[at + torch.arange(a.sequence, device=device)]
        with autocast(device):
            loss = step_model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % max(1, a.steps // 10) == 0 or step + 1 == a.steps:
            now = perplexity(model, held_out, a.sequence, device)
            print(f"step {step + 1}: loss {loss.item():.3f}, held-out perplexity {now:.2f}, "
                  f"{time.time() - start:.0f} s", flush=True)
            if now < best:
                best = now
                model.half().save_pretrained(a.out)
                model.float()
                tokenizer.save(str(a.out / "tokenizer.json"))


if __name__ == "__main__":
    main()
