"""Programs of torch.export that contain no op of rope_ext, and run without the package::

    program = torch.export.export(model, (x,))
    table = torch.export.default_decompositions() | rope_ext.export.decompositions()
    program = program.run_decompositions(table)       # contains no op of rope_ext

For ONNX: `rope_ext.onnx`.
"""

from ._torch.decompositions import FUNCTIONS
from ._torch.overloads import ByOverload, for_all_overloads

__all__ = ["decompositions"]


def decompositions() -> ByOverload:
    """Express every op of rope_ext by PyTorch's own ops, for `ExportedProgram.run_decompositions`.

    All sizes of the program may be dynamic. Results have the same strides as those of the ops.

    Accuracy, in an engine that rounds each operation as PyTorch does: the rotation by tables, norm and
    `rope_ext.angles.revolutions` are bit-identical to the ops. cos and sin of inv_freq are computed in float64 and
    rounded once, to within 3e-8 + angle * 2^-48 of exact (for float64 x 4e-15, up to position 2^53). The error of the
    ops is stated in `rope_ext.cos_sin`; the two differ by at most the sum of their errors. attention_scaling scales
    both results, with one more rounding of each. Gradients of tables and of norm are summed in the order of the engine.

    A position outside the table, which `rope_ext.apply` refuses on a CPU, yields NaN in the rotated channels of its
    token. Shapes and dtypes that `rope_ext.apply` refuses are refused with its errors, for the sizes of the example.

    Returns:
        A dictionary from ops to functions. It belongs to the caller, since nothing is registered globally; programs
        that do not use it keep the ops.
    """
    return for_all_overloads(FUNCTIONS)
