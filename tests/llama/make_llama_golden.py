"""Make the tiny model folders and golden values under tests/llama/data with transformers.

usage: make_llama_golden.py [OUT_DIR]        (torch 2.11, transformers 5; CPU only)

Every folder holds a random model as save_pretrained writes it, and golden.json: input ids, the
logits of every position (or of the "positions" that it lists) in fp32 arithmetic on the stored
weights, a greedy continuation, and the perplexity of a token list in windows of 16 by the published
recipe.
"""
import json
import math
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM, CONFIG_MAPPING, LlamaConfig

MODELS = {
    # Every head has its own keys and values; a head of its own; fp16.
    "mha_untied_f16": dict(
        dtype=torch.float16, hidden_size=40, intermediate_size=60, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=72, tie_word_embeddings=False),
    # Two heads share keys and values; the head is the embedding; fp32.
    "gqa_tied_f32": dict(
        dtype=torch.float32, hidden_size=32, intermediate_size=48, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True),
    # Llama 3 rope scaling with all three frequency bands, and heads wider than hidden / heads.
    "llama3_rope_f16": dict(
        dtype=torch.float16, hidden_size=36, intermediate_size=64, num_attention_heads=3,
        num_key_value_heads=1, head_dim=20, vocab_size=80, tie_word_embeddings=True,
        eos_token_id=[3, 5],
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=32)),
    # Linear rope scaling, biases everywhere, bf16, several shards.
    "linear_bias_bf16": dict(
        dtype=torch.bfloat16, hidden_size=40, intermediate_size=68, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, tie_word_embeddings=False, attention_bias=True,
        mlp_bias=True, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
}
# Other families; longer inputs, so that windows and their ends meet the pages of the kv cache.
FAMILIES = {
    "mistral_f16": dict(
        family="mistral", dtype=torch.float16, hidden_size=40, intermediate_size=52,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=60, sliding_window=21),
    # No window, tied.
    "qwen2_bf16": dict(
        family="qwen2", dtype=torch.bfloat16, hidden_size=36, intermediate_size=44,
        num_attention_heads=6, num_key_value_heads=2, vocab_size=56, tie_word_embeddings=True),
    # The second layer has a window, longer than a page.
    "qwen2_window_f32": dict(
        family="qwen2", dtype=torch.float32, hidden_size=24, intermediate_size=36,
        num_attention_heads=4, num_key_value_heads=1, vocab_size=44, use_sliding_window=True,
        sliding_window=40, max_window_layers=1),
    # Heads of an odd width.
    "opt_f16": dict(
        family="opt", dtype=torch.float16, hidden_size=36, ffn_dim=52, num_attention_heads=4,
        vocab_size=62, init_std=0.25),
    # As OPT 350m: norms behind, an embedding that is narrower than the layers.
    "opt_post_norm_f32": dict(
        family="opt", dtype=torch.float32, hidden_size=24, ffn_dim=40, num_attention_heads=3,
        vocab_size=50, init_std=0.25, do_layer_norm_before=False, word_embed_proj_dim=20),
    "phi_bf16": dict(
        family="phi", dtype=torch.bfloat16, hidden_size=40, intermediate_size=52,
        num_attention_heads=4, vocab_size=58, partial_rotary_factor=0.4),
    "phi_gqa_f32": dict(
        family="phi", dtype=torch.float32, hidden_size=32, intermediate_size=44,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=46),
    "phi3_f16": dict(
        family="phi3", dtype=torch.float16, hidden_size=40, intermediate_size=44,
        num_attention_heads=5, num_key_value_heads=1, vocab_size=54, sliding_window=33),
}
LENGTH, NEW_TOKENS, WINDOW = 36, 20, 16
FAMILY_LENGTH, POSITIONS = 75, [0, 1, 5, 20, 21, 22, 31, 32, 33, 40, 41, 52, 53, 63, 64, 73, 74]


def perplexity(model, ids):
    losses = []
    for at in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = torch.tensor([ids[at:at + WINDOW]])
        losses.append(model(window, labels=window).loss.item())
    return math.exp(sum(losses) / len(losses))


@torch.no_grad()
def make(folder, dtype, family="llama", **options):
    options.setdefault("eos_token_id", 2)
    if family == "llama":
        config = LlamaConfig(num_hidden_layers=2, max_position_embeddings=128,
                             initializer_range=0.25, bos_token_id=1, rms_norm_eps=1e-5, **options)
    else:
        config = CONFIG_MAPPING[family](
            num_hidden_layers=2, max_position_embeddings=128, initializer_range=0.25,
            bos_token_id=1, pad_token_id=0, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(0.5, 1.5)
        if name.endswith("bias"):
            parameter.normal_(0, 0.2)
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size="30KB" if "bias" in folder.name else "1GB")
    # Loaded anew: converting a model in place would leave its rope frequencies rounded to `dtype`.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    length = LENGTH if family == "llama" else FAMILY_LENGTH
    ids = torch.randint(0, config.vocab_size, (length,)).tolist()
    logits = model(torch.tensor([ids])).logits[0]
    greedy = []
    for _ in range(NEW_TOKENS):  # plain argmax: an end token does not stop it
        greedy.append(model(torch.tensor([ids + greedy])).logits[0, -1].argmax().item())
    text = torch.randint(0, config.vocab_size, (WINDOW * 5 + 7,)).tolist()
    golden = {} if family == "llama" else dict(positions=POSITIONS)
    if golden:
        logits = logits[POSITIONS]
    golden |= dict(ids=ids, logits=[[float(f"{x:.7g}") for x in row] for row in logits.tolist()],
                  greedy=greedy, text=text, window=WINDOW, perplexity=perplexity(model, text))
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "data")
    for seed, (name, options) in enumerate((MODELS | FAMILIES).items()):
        torch.manual_seed(seed)
        make(out / name, **options)
        size = sum(f.stat().st_size for f in (out / name).iterdir())
        print(f"{name}: {size} bytes")


if __name__ == "__main__":
    main()
