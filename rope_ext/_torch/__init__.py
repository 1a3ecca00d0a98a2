"""Everything that needs torch beyond its documentation: private names, dispatch keys, transforms, the stable ABI.

* private.py: every private name of torch, its purpose, and the releases that rope_ext was tested with.
* library.py: loads _ops.so, once. flags.py, arguments.py: the arguments of the ops.
* errors.py: restores the type of an error, which torch drops between C++ and Python.
* call.py: chooses the overload of a call; RotateX, the autograd Function of ordinary calls. recording.py: whether a
  derivative is recorded. writes.py: which tensors may be written.
* derivatives.py: the autograd Functions Rotate and TableGrad. per_token.py: derivatives of tables and angles.
  revolutions.py: the op of this name.
* kernels.py: the Python kernels and their dispatch keys. fake.py: the fake kernels. vmap.py: the vmap rules.
* packed.py, packed_norm.py, packed_parts.py: `apply_qkv` as one node of autograd.
* norm.py: calls with a norm; the autograd Function NormRotate. composed_norm.py, check_norm.py: calls with a norm that
  are composed of PyTorch's ops.
* dtensor.py: DTensor support that imports nothing of torch.distributed. dtensor_rules.py, dtensor_tables.py: the
  DTensor rules of the ops. dtensor_groups.py, dtensor_parts.py: the part of each argument that a rank needs.
* decompositions.py, traced_sizes.py: the ops in PyTorch's own ops, and what they refuse. overloads.py: tables with an
  entry for each overload. onnx_export.py: the arguments of a running torch.onnx.export.
"""

from . import dtensor
from . import fake as fake
from . import kernels as kernels
from . import vmap as vmap

dtensor.register_rules()  # for a program that imported torch.distributed.tensor before rope_ext
