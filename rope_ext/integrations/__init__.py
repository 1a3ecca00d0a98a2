"""Models of transformers, diffusers and timm on rope_ext, with the same bits.

    with rope_ext.patched(model) as report: ...  # or rope_ext.patch(model) ... rope_ext.unpatch(model)

_patch.py replaces, _find.py finds what to replace, _fingerprint.py recognises it. transformers.py, diffusers.py and timm.py
hold the dialects: what a function means in terms of `rope_ext.apply`. _known.json: which function has which (known.py).
Nothing here imports these libraries.
"""

from ._patch import Entry, Report, patch, patched, unpatch

__all__ = ["Entry", "Report", "patch", "patched", "unpatch"]
