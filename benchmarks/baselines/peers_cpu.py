"""The CPU implementations of other libraries, for `bench.py --peers`; peers.py has the rules."""

from functools import partial

import torch

from benchmarks.baselines.onnx_runtime import onnxruntime
from benchmarks.baselines.peers import load, on_rows
from benchmarks.harness.cases import DTYPES
from benchmarks.harness.variants import NotOffered, Step, Variant, forward_only, of_tensors


def transformers():
    """The function of Llama, and for the interleaved pairing that of Cohere, which has the same arguments."""
    from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama

    def variants(name, transform):
        # The function of Cohere computes in float32, from tables in the dtype of x.
        for function, pairing, roundings in ((llama, "half", 3), (cohere, "interleaved", 2)):
            build = of_tensors(partial(_with_rows, transform(function)))
            yield Variant(name, "functional", build, roundings, pairing)

    compiled = partial(torch.compile, dynamic=False)
    return [*variants("transformers", lambda f: f), *variants("transformers compiled", compiled)]


def _with_rows(function, q, k, tables):
    return function(q, k, tables.channel_cos[0], tables.channel_sin[0])


def rotary_embedding_torch():
    from rotary_embedding_torch import RotaryEmbedding

    def build(case):
        first, shape = case.shape.first_position, case.shape
        end = first + shape.seqlen
        rope = RotaryEmbedding(shape.head_dim, cache_max_seq_len=end)
        rope.rotate_queries_or_keys(case.inputs[0].new_zeros(1, 1, end, shape.head_dim))  # fills its cache of angles

        def call(q, k, tables):
            return rope.rotate_queries_or_keys(q, offset=first), rope.rotate_queries_or_keys(k, offset=first)

        return of_tensors(call)(case)

    return [Variant("rotary-embedding-torch", "functional", build, 1, "interleaved", float32_angles=True)]


def hugging_face_kernels():
    """The compiled kernel that transformers loads from the hub, if it is already downloaded."""
    import kernels

    kernel = kernels.get_kernel("kernels-community/rotary", version=2)
    build = forward_only(of_tensors(partial(_with_rows, kernel.apply_rotary_transformers)))
    return [Variant("HF kernels", "functional", build, 3, "half")]


def jax():
    import jax
    from jax import numpy as jnp

    @partial(jax.jit, static_argnums=4)
    def rotate_both(q, k, cos, sin, interleaved):
        def rotate(x):
            wide = x.astype(jnp.float32)
            x1, x2 = (wide[..., 0::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
            pair = x1 * cos - x2 * sin, x2 * cos + x1 * sin
            y = jnp.stack(pair, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(pair, axis=-1)
            return y.astype(x.dtype)

        return rotate(q), rotate(k)

    def build(case):
        if case.memory == "qkv":
            raise NotOffered("dense inputs only")
        by_head = case.memory == "bhsd"
        q, k = (jnp.from_dlpack(x if by_head else x.transpose(1, 2)) for x in case.inputs)
        tables = case.tables.token_cos, case.tables.token_sin
        cos, sin = (jnp.from_dlpack((t if by_head else t[:, None]).contiguous()) for t in tables)

        def fetch(results):
            found = [torch.from_dlpack(y) for y in results]
            return found if by_head else [y.transpose(1, 2) for y in found]

        return Step(lambda: jax.block_until_ready(rotate_both(q, k, cos, sin, case.interleaved)), fetch=fetch)

    return [Variant("JAX", "functional", forward_only(build), 1)]


def mlx():
    """The CPU backend, which uses one thread."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    dtypes = {"fp32": mx.float32, "bf16": mx.bfloat16, "fp16": mx.float16}

    def build(case):
        if case.memory == "qkv":
            raise NotOffered("dense inputs only")
        by_head = case.memory == "bhsd"
        arrays = [mx.array((x if by_head else x.transpose(1, 2)).float().numpy()) for x in case.inputs]
        arrays = [x.astype(dtypes[case.dtype]) for x in arrays]
        mx.eval(arrays)
        q, k = arrays if by_head else [x.transpose(0, 2, 1, 3) for x in arrays]
        options = {"traditional": case.interleaved, "base": None, "scale": 1.0, "offset": case.shape.first_position}
        options["freqs"] = mx.array((1 / case.tables.inv_freq).float().numpy())

        def call():
            y = [mx.fast.rope(x, case.shape.head_dim, **options) for x in (q, k)]
            mx.eval(y)
            return y

        def fetch(results):
            import numpy as np

            return [torch.from_numpy(np.array(y.astype(mx.float32))).to(DTYPES[case.dtype]) for y in results]

        return Step(call, fetch=fetch)

    return [Variant("MLX", "functional", forward_only(build), 3, float32_angles=True)]


def vllm():
    """In place, with tables in the dtype of x. Only the compiled library of the package is loaded."""
    best = {"AVX512": "_C.*so" if torch.cpu._is_avx512_bf16_supported() else "_C_AVX512.*so"}  # as vLLM chooses
    load("vllm", best.get(torch.backends.cpu.get_cpu_capability(), "_C_AVX2.*so"))
    op = torch.ops._C.rotary_embedding.default
    return [Variant("vLLM", "in place", forward_only(partial(on_rows, op)), 2)]


def sglang():
    load("sgl_kernel", "common_ops*so")
    op = torch.ops.sgl_kernel.rotary_embedding_cpu.default

    def build(case):
        if case.dtype == "fp32":
            raise NotOffered("no fp32")
        return on_rows(op, case)

    return [Variant("SGLang", "in place", forward_only(build), 2)]


PEERS = {
    "transformers": transformers,
    "rotary-embedding-torch": rotary_embedding_torch,
    "HF kernels": hugging_face_kernels,
    "ONNX Runtime": onnxruntime,
    "JAX": jax,
    "MLX": mlx,
    "vLLM": vllm,
    "SGLang": sglang,
}
