"""rope_ext in programs of torch.export that run without rope_ext.

    program = torch.export.export(model, (x,))
    table = torch.export.default_decompositions() | rope_ext.export.decompositions()
    program = program.run_decompositions(table)       # no op of rope_ext is left

For ONNX: rope_ext.onnx.
"""

from ._torch.decompositions import FUNCTIONS
from ._torch.overloads import ByOverload, for_all_overloads

__all__ = ["decompositions"]


def decompositions() -> ByOverload:
    """Every op of rope_ext as a function of PyTorch's own ops, for `ExportedProgram.run_decompositions`.

    A dictionary of the caller's own: it is registered nowhere, and programs that do not ask for it keep the ops.
    Any sizes of the program may be dynamic. Results have the strides that the ops give them.

    Values, where the engine rounds each operation as PyTorch does: the rotation by tables, norm and
    `angles.revolutions` have the bits of the ops. cos and sin of inv_freq are computed in float64 and rounded once,
    within 3e-8 + angle * 2^-48 of exact (for float64 x 4e-15, up to position 2^53), where the ops have the error in
    `cos_sin`: the two differ by at most the sum of their errors. attention_scaling scales both, with one more rounding
    of each. Gradients of tables and of norm add up in the order of the engine.
    A position outside the table, which `apply` refuses on a CPU, gives NaN in the rotated channels of its token. Shapes
    and dtypes that `apply` refuses are refused with its errors, for the sizes of the example.
    """
    return for_all_overloads(FUNCTIONS)
