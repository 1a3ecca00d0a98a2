"""`patch`: models of transformers, diffusers and timm on rope_ext, unmodified and with bit-identical results.

Patch a model, or before any model exists a model type of transformers or a Python module::

    with rope_ext.patched(model) as report: ...  # or rope_ext.patch(model) ... rope_ext.unpatch(model)
    rope_ext.patch("qwen3")

The files, by step:

* _calls.py finds the code that a call of a model runs: _entry.py finds replaced forwards, _find.py the rotary functions
  that code reaches (each a `Candidate` of _candidate.py), _code.py and _held.py the names and values that functions and
  objects hold. _modules.py does the same for Python modules; _model_types.py finds the modules of a model type.
* _fingerprint.py recognizes a function by its source, _proof.py proves it equal by numbers, _registry.py decides.
* _patch.py and _nested.py replace the function with a _replacement.py; _patchable.py says what can be patched.
* _report.py and _layers.py report what was replaced and why.
* transformers.py, diffusers.py and timm.py hold the dialects (_dialect.py): readers of calls, each of which returns
  the rotation that a call computes (_rotation.py). _known.json maps each known function to its dialect; known.py writes
  that file.

Only _model_types.py imports one of these libraries: transformers, when a model type is given.
"""

from ._patch import patch, patched, unpatch
from ._report import Entry, Layer, Report

__all__ = ["Entry", "Layer", "Report", "patch", "patched", "unpatch"]
