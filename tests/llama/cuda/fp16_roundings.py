"""How far the fp16 numbers of a card's engine move logits, emulated in double, by hand.

usage: fp16_roundings.py MODEL...          (torch, transformers; folders of Llamas or Qwen2s)

Runs each model on 60 random tokens twice, once with what a card holds in fp16 rounded: norms,
queries, keys and values before and after their rotation, probabilities, what attention gives, gate,
up and their product. Prints the largest difference of a logit relative to its row's largest, and
that of all rows in the Euclidean norm: of 40 texts, and of the text of engine_test.cpp's first
case. What a card differs by beyond that is no rounding.
"""
import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

TOKENS, TEXTS, SEED_OF_TEST = 60, 40, 152


def text(vocabulary, seed):
    """As support::random has it: splitmix64."""
    mask, out = (1 << 64) - 1, []
    for _ in range(TOKENS):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        out.append((z ^ z >> 31) % vocabulary)
    return torch.tensor(out)


class Llama:
    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self.model.config
        self.weights = {k: v.double() for k, v in self.model.state_dict().items()}
        self.frequencies = self.model.model.rotary_emb.inv_freq.double()

    def linear(self, name, x):
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", 0)

    def norm(self, name, x):
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return x * scale * self.weights[name + ".weight"]

    def rotate(self, x):
        angles = torch.arange(TOKENS).double()[:, None] * self.frequencies
        a, b = x.chunk(2, -1)
        c, s = angles.cos(), angles.sin()
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    def logits(self, ids, rounded):
        r = (lambda t: t.half().double()) if rounded else (lambda t: t)
        c = self.config
        groups = c.num_attention_heads // c.num_key_value_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        hidden = torch.full((TOKENS, TOKENS), -math.inf).double().triu(1)
        x = self.weights["model.embed_tokens.weight"][ids]
        for i in range(c.num_hidden_layers):
            at = f"model.layers.{i}."
            y = r(self.norm(at + "input_layernorm", x))
            q, k, v = (r(self.linear(f"{at}self_attn.{n}_proj", y)).view(TOKENS, -1, width)
                       .transpose(0, 1) for n in "qkv")
            q, k = r(self.rotate(q)), r(self.rotate(k))
            k, v = (t.repeat_interleave(groups, 0) for t in (k, v))
            scores = q @ k.transpose(1, 2) / math.sqrt(width) + hidden
            p = (scores - scores.max(-1, keepdim=True).values).exp()
            y = r((r(p) @ v / p.sum(-1, keepdim=True)).transpose(0, 1).reshape(TOKENS, -1))
            x = x + self.linear(at + "self_attn.o_proj", y)
            y = r(self.norm(at + "post_attention_layernorm", x))
            gate, up = (r(self.linear(f"{at}mlp.{n}_proj", y)) for n in ("gate", "up"))
            x = x + self.linear(at + "mlp.down_proj", r(torch.nn.functional.silu(gate) * up))
        return self.linear("lm_head", r(self.norm("model.norm", x)))


def apart(a, b):
    worst = (a - b).abs().amax(1) / b.abs().amax(1)
    return worst.max().item(), ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    for folder in sys.argv[1:]:
        m = Llama(folder)
        name, vocabulary = pathlib.Path(folder).name, m.config.vocab_size
        ids = text(vocabulary, SEED_OF_TEST)
        exact = m.logits(ids, False)
        if apart(m.model(ids[None]).logits[0].double(), exact)[0] > 1e-4:
            sys.exit(f"{name}: expected transformers' logits, found others: not such a model")
        print("{}: {:.2e} and {:.2e} for the test's text".format(
            name, *apart(m.logits(ids, True), exact)))
        of = []
        for seed in range(TEXTS):
            ids = text(vocabulary, seed)
            of.append(apart(m.logits(ids, True), m.logits(ids, False)))
        for kind, values in zip(("of a row's largest logit", "in the norm"), zip(*of)):
            values = sorted(values)
            print(f"  {kind}: median {values[TEXTS // 2]:.2e}, at most {values[-1]:.2e}")


if __name__ == "__main__":
    main()
