"""Other people's implementations on a CPU, for `bench.py --peers`: found if installed, nothing of them copied.

Each function of PEERS returns variants, or raises, with what is missing as the message. What a peer does not do (a
dtype, a form of memory, a derivative) its builder says with NotOffered.
"""

import importlib.util
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.baselines.pytorch import refill
from benchmarks.harness.cases import DTYPES, NotOffered, Step, Variant, forward_only, of_tensors


def find(peers, threads):
    """([Variant], {peer: why it is left out}). peers: of a device. threads: given to what has threads of its own."""
    # Read when they are first imported. Nothing is downloaded; JAX takes the size of its pool from NPROC.
    os.environ.update(HF_HUB_OFFLINE="1", JAX_PLATFORMS="cpu", NPROC=str(threads))
    found, missing = [], {}
    for name, variants in peers.items():
        try:
            found += [replace(variant, foreign=True) for variant in variants()]
        except Exception as error:  # whatever somebody else's package does must not end the benchmark
            missing[name] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return found, missing


def transformers():
    """Its own functions: Llama's, and for the interleaved pairing Cohere's, which has the same arguments."""
    from transformers.models.cohere.modeling_cohere import apply_rotary_pos_emb as cohere
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as llama

    def variants(name, transform):
        # Cohere's computes in float32, from tables in the dtype of x.
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
    """The compiled kernel that transformers takes from the hub, if it was downloaded before."""
    import kernels

    kernel = kernels.get_kernel("kernels-community/rotary", version=2)
    build = forward_only(of_tensors(partial(_with_rows, kernel.apply_rotary_transformers)))
    return [Variant("HF kernels", "functional", build, 3, "half")]


def onnxruntime():
    import onnx
    import onnxruntime as ort

    def build(case):
        if case.dtype == "bf16":
            raise NotOffered("no bf16")
        if case.memory == "qkv":
            raise NotOffered("dense inputs only")
        session = ort.InferenceSession(
            _onnx_graph(onnx, case), _ort_options(ort, case.threads), ["CPUExecutionProvider"]
        )
        binding, targets = session.io_binding(), [_onnx_array(y, case) for y in case.outputs()]
        # An OrtValue stands on the memory of its array, and must outlive the binding.
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in _onnx_inputs(case).items()}
        outputs = [ort.OrtValue.ortvalue_from_numpy(y) for y in targets]
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in zip("qk", outputs):
            binding.bind_ortvalue_output(f"{name}_rotated", value)

        def fetch(_results, _alive=inputs):
            found = [torch.from_numpy(y.numpy()) for y in outputs]
            if case.memory == "bhsd":
                return found
            return [y.unflatten(2, (-1, case.shape.head_dim)).transpose(1, 2) for y in found]

        return Step(partial(session.run_with_iobinding, binding), fetch=fetch)

    return [Variant("ONNX Runtime", "out=", forward_only(build), 3)]


def _ort_options(ort, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that wait for the next call would take a core while another variant is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _onnx_array(x, case):
    """bhsd: (batch, heads, seqlen, head_dim). bshd: (batch, seqlen, heads * head_dim). Nothing is copied."""
    return (x if case.memory == "bhsd" else x.transpose(1, 2).flatten(2)).numpy()


def _onnx_inputs(case):
    s, dtype = case.shape, DTYPES[case.dtype]
    positions = torch.arange(s.first_position, s.first_position + s.seqlen).expand(s.batch, -1).contiguous()
    tables = {"cos": case.tables.cos.to(dtype).numpy(), "sin": case.tables.sin.to(dtype).numpy()}
    return {
        **{name: _onnx_array(x, case) for name, x in zip("qk", case.inputs)},
        "positions": positions.numpy(),
        **tables,
    }


def _onnx_graph(onnx, case):
    """One graph with a com.microsoft.RotaryEmbedding for q and one for k."""
    make = onnx.helper
    values = {
        name: make.make_tensor_value_info(name, make.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in _onnx_inputs(case).items()
    }
    nodes, outputs = [], []
    for name in "qk":
        arguments = [name, "positions", "cos", "sin"], [f"{name}_rotated"]
        options = {"domain": "com.microsoft", "interleaved": int(case.interleaved)}
        nodes.append(make.make_node("RotaryEmbedding", *arguments, **options))
        outputs.append(onnx.ValueInfoProto())
        outputs[-1].CopyFrom(values[name])
        outputs[-1].name = f"{name}_rotated"
    graph = make.make_graph(nodes, "rotary", list(values.values()), outputs)
    versions = [make.make_opsetid("", 17), make.make_opsetid("com.microsoft", 1)]
    return make.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()


def jax():
    import jax
    from jax import numpy as jnp

    @partial(jax.jit, static_argnums=4)
    def rotate(q, k, cos, sin, interleaved):
        def turn(x):
            wide = x.astype(jnp.float32)
            x1, x2 = (wide[..., 0::2], wide[..., 1::2]) if interleaved else jnp.split(wide, 2, axis=-1)
            pair = x1 * cos - x2 * sin, x2 * cos + x1 * sin
            y = jnp.stack(pair, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(pair, axis=-1)
            return y.astype(x.dtype)

        return turn(q), turn(k)

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

        return Step(lambda: jax.block_until_ready(rotate(q, k, cos, sin, case.interleaved)), fetch=fetch)

    return [Variant("JAX", "functional", forward_only(build), 1)]


def mlx():
    """On its CPU, where one thread computes."""
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
    """In place, with tables in the dtype of x. Loaded without the rest of the package, which this does not need."""
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


def load(package, pattern):
    """Registers the compiled ops of a package that is installed: those in the files of that pattern."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {package!r}")
    files = sorted(Path(spec.origin).parent.rglob(pattern))
    if not files:
        raise FileNotFoundError(f"{package} has no {pattern}")
    for file in files:
        torch.ops.load_library(file)


def on_rows(op, case, table_dtype=None):
    """vLLM and SGLang: (positions, q, k, head_dim, cat(cos, sin), half pairing) of (tokens, heads * head_dim).

    table_dtype: that of x if None.
    """
    if case.memory == "bhsd":
        raise NotOffered("(tokens, heads * head_dim) only")
    s, x = case.shape, case.fresh_inputs()
    q, k = (t.transpose(1, 2).view(s.batch * s.seqlen, -1) for t in x)
    table = torch.cat((case.tables.cos, case.tables.sin), dim=-1).to(table_dtype or DTYPES[case.dtype])
    end = s.first_position + s.seqlen
    positions = torch.arange(s.first_position, end, device=table.device).repeat(s.batch)
    call = partial(op, positions, q, k, s.head_dim, table, not case.interleaved)
    return Step(call, before=partial(refill, x, case.inputs), fetch=lambda _nothing: x)


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
