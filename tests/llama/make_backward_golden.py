"""Make the golden sensitivities of tests/llama/backward_test.cpp with PyTorch's autograd.

usage: make_backward_golden.py [DATA_DIR]        (torch 2.11, transformers 5; CPU only)

For every folder that make_llama_golden.py wrote, in fp64 arithmetic on the stored weights: the
gradient of the mean next-token loss with respect to the weight of every linear of a layer, squared
element by element and summed over two samples. They are the "ids" of the folder's golden.json, and
the first 50 tokens of its "text". DATA_DIR/backward/NAME.safetensors holds the two losses, and of
every weight's sums the sums of the rows and every 19th element; 19 divides no number of columns.
"""
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

STRIDE, TEXT = 19, 50


def make(folder, out):
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa").double().eval()
    golden = json.loads((folder / "golden.json").read_text())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    linears = {name + ".weight": module.weight for name, module in model.named_modules()
               if isinstance(module, torch.nn.Linear) and module is not head
               and ".layers." in name}
    model.requires_grad_(False)
    for weight in linears.values():
        weight.requires_grad_(True)
    sums = {name: torch.zeros_like(weight) for name, weight in linears.items()}
    losses = []
    for ids in (golden["ids"], golden["text"][:TEXT]):
        ids = torch.tensor(ids)
        logits = model(ids[None]).logits[0]
        assert logits.dtype == torch.float64 and embedding.weight.dtype == torch.float64
        loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
        gradients = torch.autograd.grad(loss, list(linears.values()))
        for name, gradient in zip(linears, gradients):
            sums[name] += gradient**2
        losses.append(loss.item())
    tensors = {"losses": torch.tensor(losses, dtype=torch.float64).float()}
    for name, total in sums.items():
        tensors[name + ".rows"] = total.sum(1).float()
        tensors[name + ".elements"] = total.flatten()[::STRIDE].float().contiguous()
    file = out / (folder.name + ".safetensors")
    save_file(tensors, file)
    print(f"{folder.name}: losses {losses}, {file.stat().st_size} bytes")


def main():
    data = pathlib.Path(sys.argv[1] if len(sys.argv) > 1
                        else pathlib.Path(__file__).parent / "data")
    out = data / "backward"
    out.mkdir(exist_ok=True)
    for folder in sorted(data.iterdir()):
        if (folder / "golden.json").exists():
            make(folder, out)


if __name__ == "__main__":
    main()
