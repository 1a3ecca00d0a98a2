"""Where rope_ext meets torch beyond its documentation: private names, dispatch keys, transforms, the stable ABI.

private.py: every private name of torch, what it is for, and the releases that rope_ext was tested with.
library.py: _ops.so, loaded once. errors.py: the type of an error, which torch loses on the way.
autograd.py: derivatives. fake.py: shapes without data. vmap.py: batches.
"""

from . import fake as fake
from . import vmap as vmap
