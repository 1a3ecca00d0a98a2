"""ONNX Runtime on a CPU, for peers_cpu.py: a graph with its operator com.microsoft.RotaryEmbedding."""

from functools import partial

import torch

from benchmarks.harness.cases import DTYPES
from benchmarks.harness.variants import NotOffered, Step, Variant, forward_only


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
        # An OrtValue shares the memory of its array and must outlive the binding: fetch keeps the inputs alive.
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
    # Threads that spin between calls would use a core while another variant is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _onnx_array(x, case):
    """x without a copy: (batch, heads, seqlen, head_dim) in bhsd memory, else (batch, seqlen, heads * head_dim)."""
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
    """A graph with two com.microsoft.RotaryEmbedding, one for q and one for k."""
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
