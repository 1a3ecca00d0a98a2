"""A Llama of transformers, sharded by its tensor-parallel plan, with and without rope_ext.patch.

    python examples/distributed/tensor_parallel_transformers.py        # also needs transformers and accelerate

Each process holds some of the heads as plain tensors, because the sharded projections unwrap their results. The
rotation is therefore a local call, and `patch` works as on one process: the results of the sharded model stay
bit-identical. Sharded and unsharded results differ by rounding, because o_proj and down_proj sum in another order.
"""

import tempfile

import torch
from _processes import compare, run
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig
from transformers.utils import logging

import rope_ext

logging.disable_progress_bar()
TINY = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}


def train(model, tokens):
    """The logits, and the gradient of q_proj in the first layer, which passes through all rotations."""
    model.zero_grad()
    logits = model(tokens).logits
    logits.logsumexp(dim=-1).mean().backward()
    return logits.detach(), model.model.layers[0].self_attn.q_proj.weight.grad


def sharded(rank, world_size, folder, tokens, logits_alone, grad_alone):
    config = DistributedConfig(tp_size=world_size, tp_plan="auto")
    model = LlamaForCausalLM.from_pretrained(folder, distributed_config=config)
    logits_unpatched, grad_unpatched = train(model, tokens)
    report = rope_ext.patch(model)
    assert report.replaced, report
    logits, grad = train(model, tokens)
    compare("logits, sharded: patched against unpatched", logits, logits_unpatched)
    compare("gradient of q_proj, sharded: patched against unpatched", grad.full_tensor(), grad_unpatched.full_tensor())
    compare("logits: sharded and patched against one process", logits, logits_alone, bound=1e-5)
    compare("gradient of q_proj: sharded and patched against one process", grad.full_tensor(), grad_alone, bound=1e-5)


def main():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    tokens = torch.randint(TINY["vocab_size"], (2, 24))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        run(sharded, 2, folder, tokens, *train(model, tokens))


if __name__ == "__main__":
    main()
