"""A checkpoint that Weft wrote, loaded by Hugging Face transformers: the same logits.

usage: python transformers_logits.py CHECKPOINT OUT

CHECKPOINT is a step folder of `weft train`; OUT is what `weft eval MODEL --checkpoint CHECKPOINT --tokens T -o OUT` wrote for the
tokens in T, which may be any safetensors file with `tokens`, integers [batch, sequence]; give T as the third argument.
Prints the distance ||theirs - ours|| / ||theirs|| and fails above 1e-5. Needs torch, transformers and safetensors; not part of CI.
"""
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BOUND = 1e-5

checkpoint, out, tokens = sys.argv[1:4]
ids = load_file(tokens)["tokens"].long()
ours = load_file(out)["logits"].double()
model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").train(False)
with torch.no_grad():
    theirs = model(ids, use_cache=False).logits.double()
distance = ((theirs - ours).norm() / theirs.norm()).item()
print(f"{checkpoint}: {sum(p.numel() for p in model.parameters()):,} parameters, logits {list(theirs.shape)}, distance {distance:.2e}")
sys.exit(distance > BOUND)
