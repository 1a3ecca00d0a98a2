"""Where rope_ext meets torch beyond its documentation: private names, dispatch keys, transforms, the stable ABI.

private.py: every private name of torch, what it is for, and the releases that rope_ext was tested with.
library.py: _ops.so, loaded once. flags.py, arguments.py: what the ops take.
errors.py: the type of an error, which torch loses on the way.
call.py: recorded or not, and RotateX, the Function of ordinary calls. recording.py: when a derivative is recorded.
writes.py: what may be written.
derivatives.py: Rotate and TableGrad. per_token.py: derivatives of tables and angles. revolutions.py: the op of
this name. kernels.py: what is registered at the dispatch keys. fake.py: shapes without data. vmap.py: batches.
dtensor.py: what the others do for DTensors; dtensor_rules.py, dtensor_tables.py: the ops on them; dtensor_groups.py,
dtensor_parts.py: the part of each argument that a rank needs.
norm.py: calls with a norm, and NormRotate. composed_norm.py, check_norm.py: what it leaves to PyTorch's ops.
decompositions.py: the ops in PyTorch's own. overloads.py: tables of functions for all overloads. onnx_export.py: what
torch.onnx.export was told.
"""

from . import dtensor
from . import fake as fake
from . import kernels as kernels
from . import vmap as vmap

dtensor.register_rules()  # for a program that has imported torch.distributed.tensor before
