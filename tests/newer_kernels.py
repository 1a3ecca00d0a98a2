"""How programs of tests begin that use the package `kernels` in transformers.

transformers 5.23 asks for kernels 0.18.2, but the newest release is 0.17.2: they report the newer version.
"""

NEWER_KERNELS = """
import importlib.metadata

version = importlib.metadata.version
importlib.metadata.version = lambda name: max("0.18.2", version(name)) if name == "kernels" else version(name)
"""
