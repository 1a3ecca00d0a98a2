"""Models of transformers, diffusers and timm on rope_ext, with the same bits.

    with rope_ext.patched(model) as report: ...  # or rope_ext.patch(model) ... rope_ext.unpatch(model)
    rope_ext.patch("qwen3")                      # before any model exists: a type of transformers, or a Python module

_calls.py finds what a call of a model runs, with _entry.py (whose code), _find.py (the rotary functions that code
reaches, each a _candidate.py), _code.py and _held.py (what functions and values hold). _modules.py finds what Python
modules reach, _model_types.py the modules of a model type. _fingerprint.py recognises a function, _proof.py probes it,
_registry.py decides, _patch.py and _nested.py replace it, in what _patchable.py allows; _report.py and _layers.py say
what was done. transformers.py, diffusers.py and timm.py hold the dialects (_dialect.py): readers of calls, which return
what is to be rotated and how (_rotation.py). _known.json says which function has which dialect; known.py writes it.
Nothing here imports these libraries, but for transformers where a model type is given.
"""

from ._patch import patch, patched, unpatch
from ._report import Entry, Layer, Report

__all__ = ["Entry", "Layer", "Report", "patch", "patched", "unpatch"]
