"""Train a tiny Qwen3 of transformers twice from one seed: unmodified, and with norm and rotation in one pass.

    python examples/train_tiny_qwen3.py [--steps 50] [--dtype bfloat16]

Text: the opening of "Coriolanus" (see train_tiny_llama.py); tokens are its bytes. The program also prints the memory
that one attention layer, larger than those of the model, keeps for its backward pass, and the peak of both passes.
"""

import argparse
import json
import tempfile
import types
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3 import modeling_qwen3 as qwen3

import rope_ext

TEXT = Path(__file__).resolve().parent / "shakespeare.txt"
SEQLEN, BATCH = 128, 8
TINY = {"vocab_size": 128, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "head_dim": 32}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
LAYER = {"hidden_size": 1024, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8}


def attention_in_one_pass(self, hidden_states, position_embeddings, attention_mask, past_key_values=None, **kwargs):
    """Qwen3Attention.forward with one call in place of q_norm, k_norm and apply_rotary_pos_emb."""
    tokens = hidden_states.shape[:-1]
    q, k, v = (
        projection(hidden_states).view(*tokens, -1, self.head_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    weights, eps = (self.q_norm.weight, self.k_norm.weight), self.q_norm.variance_epsilon
    q, k = rope_ext.apply((q, k), *position_embeddings, norm=weights, eps=eps)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if past_key_values is not None:
        k, v = past_key_values.update(k, v, self.layer_idx)
    attend = qwen3.ALL_ATTENTION_FUNCTIONS.get_interface(
        self.config._attn_implementation, qwen3.eager_attention_forward
    )
    dropout = self.attention_dropout if self.training else 0.0
    options = {"dropout": dropout, "scaling": self.scaling, "sliding_window": self.sliding_window}
    attended, scores = attend(self, q, k, v, attention_mask, **options, **kwargs)
    return self.o_proj(attended.reshape(*tokens, -1)), scores


def fuse(model):
    """Replaces the forward of the attention layers of this model; other models are unaffected."""
    for module in model.modules():
        if isinstance(module, qwen3.Qwen3Attention):
            module.forward = types.MethodType(attention_in_one_pass, module)


def train(fused, steps, dtype):
    """The loss of every step. All random numbers come from one seed."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**TINY)).to(dtype)
    if fused:
        fuse(model)
    tokens = torch.tensor([*TEXT.read_bytes()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(steps):
        begin = torch.randint(len(tokens) - SEQLEN, (BATCH, 1))
        window = tokens[begin + torch.arange(SEQLEN)]
        loss = model(input_ids=window, labels=window, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def memory_of_layer(fused, dtype, seqlen=1024):
    """(bytes that one attention layer keeps for its backward pass, peak of both passes), both beyond the inputs."""
    torch.manual_seed(0)
    layer = qwen3.Qwen3Attention(Qwen3Config(**LAYER, attn_implementation="sdpa"), 0).to(dtype)
    if fused:
        fuse(layer)
    x = torch.randn(1, seqlen, LAYER["hidden_size"], dtype=dtype, requires_grad=True)
    tables = qwen3.Qwen3RotaryEmbedding(layer.config)(x, torch.arange(seqlen)[None])
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def forward():
        return layer(x, tables, None)[0]

    forward().sum().backward()
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        with torch.profiler.record_function("forward"):
            y = forward()
        y.sum().backward()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    (end,) = (e["ts"] + e["dur"] for e in events if e["name"] == "forward" and e.get("cat") == "user_annotation")
    held, kept, peak = 0, 0, 0
    for time, change in changes:
        held += change
        peak, kept = max(peak, held), held if time <= end else kept
    return kept, peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    eager, fused = (train(fused, options.steps, dtype) for fused in (False, True))
    print("step   loss, eager   loss, in one pass")
    for step in sorted({*range(0, options.steps, 10), options.steps - 1}):
        print(f"{step + 1:4} {eager[step]:13.6f} {fused[step]:19.6f}")
    print(f"largest difference between the losses of a step: {max(abs(a - b) for a, b in zip(eager, fused)):.2g}\n")
    print("one attention layer      kept for the backward      peak")
    for name, fused in (("eager", False), ("in one pass", True)):
        kept, peak = memory_of_layer(fused, dtype)
        print(f"{name:22} {kept / 2**20:20.1f} MiB {peak / 2**20:10.1f} MiB")


if __name__ == "__main__":
    main()
