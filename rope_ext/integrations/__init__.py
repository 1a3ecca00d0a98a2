"""Models of transformers, diffusers and timm on rope_ext, with the same bits.

    with rope_ext.patched(model) as report: ...  # or rope_ext.patch(model) ... rope_ext.unpatch(model)

_calls.py finds what a call of a model runs, with _entry.py (whose code), _find.py (the rotary functions that code
reaches), _code.py and _held.py (what functions and values hold). _fingerprint.py recognises a function, _proof.py
probes it, _patch.py and _nested.py replace it, _report.py and _layers.py say what was done. transformers.py,
diffusers.py and timm.py hold the dialects: what functions mean in terms of `rope_ext.apply`.
_known.json: which function has which (known.py writes it).
Nothing here imports these libraries.
"""

from ._patch import patch, patched, unpatch
from ._report import Entry, Layer, Report

__all__ = ["Entry", "Layer", "Report", "patch", "patched", "unpatch"]
