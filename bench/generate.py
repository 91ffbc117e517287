"""Decoding and reading a prompt with models/small.model beside llama.cpp on the same weights, turn about in one run.

usage: python bench/generate.py --data TEXT... [--precision f32|bf16] [--rounds 5] [--weft target/release/weft]

Weft trains two steps and writes a checkpoint; its weights become a GGUF file (architecture deepseek2, no vocabulary) that llama.cpp
loads with two threads. Each round times both: 512 tokens of prompt at once, then 255 tokens one by one after 16, greedily. Prints
the best round of each and their ratio. Needs llama-cpp-python (PyPI, built from source in about ten minutes), gguf, safetensors,
torch.
"""
import argparse
import ctypes
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

PROMPT, SHORT, NEW, CONTEXT = 512, 16, 256, 1024


def to_gguf(checkpoint, path, precision):
    """The checkpoint under the names and with the metadata that llama.cpp's deepseek2 reads."""
    import gguf
    import numpy as np
    import torch
    from safetensors.torch import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    stored = load_file(checkpoint / "model.safetensors")
    heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
    rope, latent = config["qk_rope_head_dim"], config["kv_lora_rank"]
    out = gguf.GGUFWriter(path, "deepseek2")
    for write, number in [
        (out.add_block_count, config["num_hidden_layers"]),
        (out.add_context_length, config["max_position_embeddings"]),
        (out.add_embedding_length, config["hidden_size"]),
        (out.add_feed_forward_length, config["intermediate_size"]),
        (out.add_head_count, heads),
        (out.add_head_count_kv, 1),  # the latent is one key that all heads read
        (out.add_key_length, latent + rope),
        (out.add_value_length, latent),
        (out.add_key_length_mla, nope + rope),
        (out.add_value_length_mla, value),
        (out.add_q_lora_rank, config["q_lora_rank"]),
        (out.add_kv_lora_rank, latent),
        (out.add_rope_dimension_count, rope),
        (out.add_rope_freq_base, 10000.0),
        (out.add_layer_norm_rms_eps, config["rms_norm_eps"]),
        (out.add_vocab_size, config["vocab_size"]),
        (out.add_expert_count, config["n_routed_experts"]),
        (out.add_expert_used_count, config["num_experts_per_tok"]),
        (out.add_expert_shared_count, config["n_shared_experts"]),
        (out.add_expert_feed_forward_length, config["moe_intermediate_size"]),
        (out.add_expert_weights_scale, config["routed_scaling_factor"]),
        (out.add_expert_weights_norm, config["norm_topk_prob"]),
        (out.add_expert_gating_func, gguf.ExpertGatingFuncType.SIGMOID),
        (out.add_expert_group_count, config["n_group"]),
        (out.add_expert_group_used_count, config["topk_group"]),
        (out.add_leading_dense_block_count, config["first_k_dense_replace"]),
        (out.add_tokenizer_model, "none"),
    ]:
        write(number)

    def put(name, tensor):
        tensor = tensor.float().contiguous()
        if precision == "bf16" and tensor.dim() > 1 and "gate_inp" not in name:
            codes = tensor.bfloat16().view(torch.int16).numpy().view(np.uint8)
            shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
            out.add_tensor(name, codes.reshape(shape), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            out.add_tensor(name, tensor.numpy().astype(np.float32))

    put("token_embd.weight", stored["model.embed_tokens.weight"])
    put("output_norm.weight", stored["model.norm.weight"])
    put("output.weight", stored["lm_head.weight"])
    for layer in range(config["num_hidden_layers"]):
        def here(name, layer=layer):
            return stored[f"model.layers.{layer}.{name}.weight"]

        def give(name, tensor, layer=layer):
            put(f"blk.{layer}.{name}", tensor)

        give("attn_norm.weight", here("input_layernorm"))
        give("ffn_norm.weight", here("post_attention_layernorm"))
        give("attn_q_a.weight", here("self_attn.q_a_proj"))
        give("attn_q_a_norm.weight", here("self_attn.q_a_layernorm"))
        give("attn_q_b.weight", here("self_attn.q_b_proj"))
        give("attn_kv_a_mqa.weight", here("self_attn.kv_a_proj_with_mqa"))
        give("attn_kv_a_norm.weight", here("self_attn.kv_a_layernorm"))
        give("attn_output.weight", here("self_attn.o_proj"))
        both = here("self_attn.kv_b_proj").view(heads, nope + value, latent)
        give("attn_k_b.weight", both[:, :nope].transpose(1, 2))
        give("attn_v_b.weight", both[:, nope:])
        if layer < config["first_k_dense_replace"]:
            for part in ["gate", "up", "down"]:
                give(f"ffn_{part}.weight", here(f"mlp.{part}_proj"))
            continue
        give("ffn_gate_inp.weight", here("mlp.gate"))
        give("exp_probs_b.bias", stored[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"])
        for part in ["gate", "up", "down"]:
            experts = [here(f"mlp.experts.{e}.{part}_proj") for e in range(config["n_routed_experts"])]
            give(f"ffn_{part}_exps.weight", torch.stack(experts))
            give(f"ffn_{part}_shexp.weight", here(f"mlp.shared_experts.{part}_proj"))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


class Llama:
    """llama.cpp through its C interface: no sampling and no text between the timed calls."""

    def __init__(self, path):
        import llama_cpp
        import numpy

        self.c, self.np = llama_cpp, numpy
        log = llama_cpp.llama_log_callback(lambda *_: None)
        self.keep = log
        llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_threads, params.n_threads_batch = CONTEXT, PROMPT, 2, 2
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def read(self, tokens):
        ids = (self.c.llama_token * len(tokens))(*tokens)  # the batch points into it
        if self.c.llama_decode(self.context, self.c.llama_batch_get_one(ids, len(tokens))) != 0:
            sys.exit("llama.cpp does not decode")
        return int(self.np.ctypeslib.as_array(self.c.llama_get_logits(self.context), (self.vocab,)).argmax())

    def round(self):
        memory = self.c.llama_get_memory(self.context)
        self.c.llama_memory_clear(memory, True)
        start = time.perf_counter()
        self.read([i * 37 % 251 for i in range(PROMPT)])
        prompt = PROMPT / (time.perf_counter() - start)
        self.c.llama_memory_clear(memory, True)
        token = self.read([i * 37 % 251 for i in range(SHORT)])
        start = time.perf_counter()
        for _ in range(NEW - 1):
            token = self.read([token])
        return {"prompt": prompt, "decode": (NEW - 1) / (time.perf_counter() - start)}


def weft_round(graph, checkpoint):
    bench = ["cargo", "bench", "-q", "-p", "weft-runtime", "--bench", "generate", "--"]
    done = subprocess.run([*bench, graph, checkpoint, "--runs", "2"], check=True, capture_output=True, text=True)
    return {name: float(rate) for name, rate in re.findall(r"(\w+) ([\d.]+) tokens/s", done.stdout)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weft", default="target/release/weft")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, graph, gguf = f"{folder}/run", f"{folder}/small.weft", f"{folder}/small.gguf"
        train = [args.weft, "train", "models/small.model", "--steps", "2", "--out", run, "--data", *args.data]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        checkpoint = sorted(pathlib.Path(run).glob("step-*"))[-1]
        compile = [args.weft, "compile", "models/small.model", "--for", "decode", "--sequence", str(CONTEXT), "-o", graph]
        subprocess.run([*compile, "--precision", args.precision], check=True, stdout=subprocess.DEVNULL)
        to_gguf(checkpoint, gguf, args.precision)
        llama = Llama(gguf)
        ours, theirs = {}, {}
        for _ in range(args.rounds):
            for best, now in [(ours, weft_round(graph, checkpoint)), (theirs, llama.round())]:
                for name, rate in now.items():
                    best[name] = max(best.get(name, 0), rate)
    for name in ["prompt", "decode"]:
        print(f"{args.precision} {name}: weft {ours[name]:.0f}, llama.cpp {theirs[name]:.0f} tokens/s, ratio {ours[name] / theirs[name]:.2f}")


main()
