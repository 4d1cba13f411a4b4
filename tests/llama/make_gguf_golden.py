#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Makes data/*.gguf, tiny Llamas as a converter would write them, with the Python package `gguf`:
it lays the files out, quantizes, and knows which name each Hugging Face tensor gets.

biased.gguf  F16 and F32, untied, all biases, linear rope, a SentencePiece vocabulary
tied.gguf    Q8_0 and F32, tied, llama3 rope, a byte-level BPE vocabulary
Element i of tensor `name` is (37 i + 11 len(name) + 5) mod 255 - 127 in Hugging Face's order, and
127 where i is a multiple of 32: numbers that F16 and Q8_0 hold exactly.
"""
import math
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

FOLDER = pathlib.Path(__file__).parent / "data"


def values(name, shape):
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    v = (37 * i + 11 * len(name) + 5) % 255 - 127
    return np.where(i % 32 == 0, 127, v).astype(np.float32).reshape(shape)


def rope_rows(w, heads):
    """From rows half a head apart to rows side by side."""
    halves = w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(w.shape)


def llama3_factors(head_dim, theta, factor, low, high, original):
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def model(file, layers, hidden, intermediate, heads, kv_heads, vocabulary, linear_type, tied,
          biases):
    w = gguf.GGUFWriter(FOLDER / file, "llama")
    w.add_vocab_size(vocabulary)
    w.add_context_length(128)
    w.add_embedding_length(hidden)
    w.add_block_count(layers)
    w.add_feed_forward_length(intermediate)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(hidden // heads)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    kv = hidden // heads * kv_heads

    def add(name, shape, rope_heads=0):
        v = values(name, shape)
        if rope_heads:
            v = rope_rows(v, rope_heads)
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        t = linear_type if len(shape) == 2 else T.F32
        w.add_tensor(stored, gguf.quants.quantize(v, t), raw_dtype=t)

    add("model.embed_tokens.weight", (vocabulary, hidden))
    for n in range(layers):
        layer = "model.layers.%d." % n
        add(layer + "input_layernorm.weight", (hidden,))
        add(layer + "post_attention_layernorm.weight", (hidden,))
        for part, rows, cols, rope_heads in (
                ("self_attn.q_proj", hidden, hidden, heads),
                ("self_attn.k_proj", kv, hidden, kv_heads), ("self_attn.v_proj", kv, hidden, 0),
                ("self_attn.o_proj", hidden, hidden, 0), ("mlp.gate_proj", intermediate, hidden, 0),
                ("mlp.up_proj", intermediate, hidden, 0),
                ("mlp.down_proj", hidden, intermediate, 0)):
            add(layer + part + ".weight", (rows, cols), rope_heads)
            if biases:
                add(layer + part + ".bias", (rows,), rope_heads)
    add("model.norm.weight", (hidden,))
    if not tied:
        add("lm_head.weight", (vocabulary, hidden))
    return w


def write(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    w = model("biased.gguf", 2, 8, 12, 2, 1, 10, T.F16, False, True)
    w.add_rope_freq_base(500.0)
    w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    w.add_rope_scaling_factor(4.0)
    w.add_tokenizer_model("llama")
    w.add_token_list(["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab", "<x>"])
    w.add_token_scores([0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.5, -5.0, -1000.0])
    w.add_token_types([2, 3, 3, 6, 1, 1, 1, 1, 1, 4])
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_add_space_prefix(True)
    write(w)

    w = model("tied.gguf", 1, 32, 32, 4, 2, 8, T.Q8_0, True, False)
    w.add_rope_freq_base(10000.0)
    w.add_tensor("rope_freqs.weight", llama3_factors(8, 10000.0, 8.0, 1.0, 4.0, 64))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(["<|end|>", "<|turn|>", "a", "b", "Ġ", "Ġa", "ab", "Ġab"])
    w.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    w.add_token_merges(["Ġ a", "a b", "Ġa b"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    w.add_eot_token_id(1)
    w.add_pad_token_id(1)
    w.add_chat_template("{{ messages }}")
    write(w)


if __name__ == "__main__":
    main()
