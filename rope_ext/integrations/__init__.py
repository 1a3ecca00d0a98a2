"""Models of transformers, diffusers and timm on rope_ext, with the same bits.

    with rope_ext.patched(model) as report: ...  # or rope_ext.patch(model) ... rope_ext.unpatch(model)

_find.py finds what a model calls, _fingerprint.py recognises it, _proof.py probes it, _patch.py and _nested.py replace
it. transformers.py, diffusers.py and timm.py hold the dialects: what functions mean in terms of `rope_ext.apply`.
_known.json: which function has which (known.py writes it).
Nothing here imports these libraries.
"""

from ._patch import patch, patched, unpatch
from ._report import Entry, Report

__all__ = ["Entry", "Report", "patch", "patched", "unpatch"]
