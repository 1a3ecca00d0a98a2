"""Compares models and functions of other libraries on rope_ext with their originals, and generates the pages.

Run from the root of the checkout::

    python -m tests.conformance.transformers.run --out docs/models.md
    python -m tests.conformance.diffusers_timm.run  # writes docs/models_diffusers.md
    python -m tests.conformance.functions  # prints the table of rope_ext.compat in docs/migrate.md

The test suite runs some of the models: test_models, test_patch_diffusers, test_patch_timm.
"""
