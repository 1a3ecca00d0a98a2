"""Models and functions of other libraries on rope_ext against their originals, and the pages made from that.

    python -m tests.conformance.transformers.run --out docs/models.md
    python -m tests.conformance.diffusers_timm.run             # writes docs/models_diffusers.md
    python -m tests.conformance.functions                      # prints the table of rope_ext.compat in docs/migrate.md

From the root of the checkout. The tests run some of the models: test_models, test_patch_diffusers, test_patch_timm.
"""
