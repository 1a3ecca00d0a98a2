"""The first lines of test programs in which transformers uses the package `kernels`.

transformers 5.23 requires kernels 0.18.2, but the newest release is 0.17.2: these lines let it report the newer version.
"""

NEWER_KERNELS = """
import importlib.metadata

version = importlib.metadata.version
importlib.metadata.version = lambda name: max("0.18.2", version(name)) if name == "kernels" else version(name)
"""
