"""The case v3-mtp2: two prediction modules behind a DeepSeek-V3 trunk, in f32, by Hugging Face's layers and a loop of our own.

usage: python prediction_modules.py OUT_DIR

transformers has no prediction modules, so their decoder layers are the last of a trunk that is DEPTH layers longer. Module k
reads the representation of depth k - 1 (the trunk's after its final norm, a module's before its own) at positions 0..S - k and
the embedding of the token k places ahead, embedding first; its loss is the mean over the S - 1 - k targets it has.
Writes config.json, model.safetensors and expected.safetensors: tokens, logits, loss, mtp_logits.K, mtp_loss (the mean of the
modules'), total (loss + 0.3 mtp_loss) and grad.<name> of total; the stored copies of embedding and head have none.
Needs torch, transformers and safetensors; not part of CI.
"""
import copy
import os
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

DEPTH, LAYERS, HIDDEN, VOCAB, LAMBDA = 2, 2, 32, 80, 0.3
BATCH, SEQUENCE = 2, 18

torch.manual_seed(21)
config = transformers.DeepseekV3Config(
    initializer_range=0.12, vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, first_k_dense_replace=1,
    num_attention_heads=2, num_key_value_heads=2, q_lora_rank=20, kv_lora_rank=20, qk_rope_head_dim=8, qk_nope_head_dim=12,
    v_head_dim=12, intermediate_size=40, moe_intermediate_size=24, n_routed_experts=4, n_group=2, topk_group=1,
    num_experts_per_tok=2, n_shared_experts=1, max_position_embeddings=256, num_nextn_predict_layers=DEPTH)
config._attn_implementation = "eager"
longer = copy.deepcopy(config)
longer.num_hidden_layers = LAYERS + DEPTH
net = transformers.DeepseekV3ForCausalLM(longer).float().train(False)
trunk = net.model


def module():
    norms = {n: DeepseekV3RMSNorm(HIDDEN, config.rms_norm_eps) for n in ("enorm", "hnorm", "shared_head.norm")}
    joined = torch.nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
    torch.nn.init.normal_(joined.weight, std=0.12)
    return norms | {"eh_proj": joined}


modules = [module() for _ in range(DEPTH)]
with torch.no_grad():
    gains = [p for n, p in net.named_parameters() if "norm" in n]
    gains += [part.weight for m in modules for name, part in m.items() if "norm" in name]
    for gain in gains:
        gain.copy_(1 + 0.1 * torch.randn_like(gain))
    for name, bias in net.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.copy_(0.05 * torch.randn_like(bias))


def run(h, layers):
    n = h.shape[1]
    positions = torch.arange(n)[None].expand(BATCH, n)
    rotary = trunk.rotary_emb(h, positions)
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
    for i in layers:
        out = trunk.layers[i](h, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        h = out[0] if isinstance(out, tuple) else out
    return h


def loss_of(logits, tokens, ahead):
    return cross_entropy(logits[:, :-1].reshape(-1, VOCAB), tokens[:, ahead:].reshape(-1))


tokens = torch.randint(0, VOCAB, (BATCH, SEQUENCE))
h = trunk.norm(run(trunk.embed_tokens(tokens), range(LAYERS)))
expected = {"tokens": tokens, "logits": net.lm_head(h)}
expected["loss"] = loss_of(expected["logits"], tokens, 1)
losses = []
for k, m in enumerate(modules, start=1):
    ahead, seen = m["enorm"](trunk.embed_tokens(tokens[:, k:])), m["hnorm"](h[:, : SEQUENCE - k])
    h = run(m["eh_proj"](torch.cat([ahead, seen], -1)), [LAYERS + k - 1])
    expected[f"mtp_logits.{k}"] = net.lm_head(m["shared_head.norm"](h))
    losses.append(loss_of(expected[f"mtp_logits.{k}"], tokens, k + 1))
expected["mtp_loss"] = sum(losses) / DEPTH
expected["total"] = expected["loss"] + LAMBDA * expected["mtp_loss"]
expected["total"].backward()


def published(net, of):
    """Tensors under their published names; `of` takes what is wanted of a module's parameter."""
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        tensors = load_file(os.path.join(folder, "model.safetensors"))
    for k, m in enumerate(modules):
        for name, part in m.items():
            tensors[f"model.layers.{LAYERS + k}.{name}.weight"] = of(part.weight).detach().contiguous()
    return tensors


gradients = copy.deepcopy(net)
with torch.no_grad():
    for to, p in zip(gradients.parameters(), net.parameters()):
        to.copy_(p.grad if p.grad is not None else torch.zeros_like(p))
for name, grad in published(gradients, lambda p: p.grad).items():
    if not name.endswith("e_score_correction_bias"):
        expected[f"grad.{name}"] = grad
stored = published(net, lambda p: p)
for layer in range(LAYERS, LAYERS + DEPTH):
    stored[f"model.layers.{layer}.embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
    stored[f"model.layers.{layer}.shared_head.head.weight"] = stored["lm_head.weight"].clone()

folder = os.path.join(sys.argv[1], "v3-mtp2")
shutil.rmtree(folder, ignore_errors=True)
config.save_pretrained(folder)
save_file(stored, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
expected = {name: t.detach().contiguous() for name, t in expected.items()}
save_file(expected, os.path.join(folder, "expected.safetensors"))
for file in os.listdir(folder):
    os.chmod(os.path.join(folder, file), 0o644)
print(f"{folder}: loss {expected['loss']:.6f}, mtp_loss {expected['mtp_loss']:.6f}")
