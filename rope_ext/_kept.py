"""Values that outlive the call that makes them: ordinary tensors, under any mode or transform of the caller."""

import functools
import hashlib
import os
import threading
import types
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from ._torch.private import constant_in_graphs, dispatch_modes, mark_static_address

_R = TypeVar("_R")

in_graphs = types.ModuleType(f"{__package__}.in_graphs")  # compiled graphs read its attributes, see `named`
CPU, _META = torch.device("cpu"), torch.device("meta")  # compared: `device.type` takes six times as long
_caches: list[Callable[[], None]] = []
_read_by_graphs: list[object] = []  # a captured CUDA graph reads its addresses for as long as the process lives


def made_apart(make: Callable[..., _R], *arguments: Any) -> _R:
    """make(*arguments), in a thread of its own.

    Modes such as FakeTensorMode, a default device, transforms of torch.func, jit traces, inference mode and autocast
    belong to a thread. None of them is active in a new thread, so what is made there is the same for every caller.
    """
    made: Future[_R] = Future()

    def run() -> None:
        try:
            made.set_result(make(*arguments))
        except BaseException as error:
            made.set_exception(error)

    # Not an executor, which takes a lock of the process: a signal handler that gets here would wait for it forever.
    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # an interpreter that is shutting down starts no threads, and keeps nothing for long
        return make(*arguments)
    thread.join()
    return made.result()


def kept(make: Callable[..., _R]) -> Callable[..., _R]:
    """Decorates make: it is called once for equal arguments, by `made_apart`. The 256 last used results are kept."""

    @functools.lru_cache(maxsize=256)
    @functools.wraps(make)
    def cached(*arguments: Any) -> _R:
        if any(is_capturing(device) for device in arguments if isinstance(device, torch.device)):
            got = "a call with arguments that are seen for the first time"
            raise RuntimeError(
                f"rope_ext: frequencies must be made before a CUDA graph is captured, by the same call, got {got}"
            )
        return made_apart(make, *arguments)

    _caches.append(cached.cache_clear)
    return cached


def named(make: Callable[..., tuple[Any, ...]]) -> Callable[..., str]:
    """Decorates make, for torch.compile: it is called once for equal arguments, while a graph is traced.

    Returns the name of an attribute of `in_graphs` that holds the result, a tuple. Dynamo takes the name for a constant
    and the tensors for those of a module that no call changes. Tensors that were constants themselves would fail with
    symbolic sizes.
    """

    @constant_in_graphs
    def name_of(*arguments: object) -> str:
        # The arguments are in the name, since guards look at shapes and not at numbers: wherever a graph comes from, an
        # equal name means equal values.
        name = f"{make.__name__}_{hashlib.sha256(repr(arguments).encode()).hexdigest()}"
        if not hasattr(in_graphs, name):
            values = made_apart(make, *arguments)
            for value in values:
                if isinstance(value, torch.Tensor):
                    mark_static_address(value)
                    if value.is_cuda:  # the graph may run on another stream than the one it was made on
                        torch.cuda.synchronize(value.device)
            setattr(in_graphs, name, values)
        return name

    return name_of


def clear() -> None:
    """Forgets all values except those that graphs read: compiling again would end at the recompile limit of dynamo."""
    for forget in _caches:
        forget()


def clears(forget: Callable[[], None]) -> Callable[[], None]:
    """Decorates forget, which `clear` then calls."""
    _caches.append(forget)
    return forget


def takes_ordinary(device: torch.device) -> bool:
    """Whether the caller can use ordinary tensors: not under a mode that makes tensors of another kind, or on meta."""
    return device != _META and (not dispatch_modes() or type(torch.empty(0, device=device)) is torch.Tensor)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph captures the work of this thread on device."""
    return device != CPU and device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def keep_for_graph(value: object) -> None:
    """Keeps value, which a CUDA graph that is being captured reads, for as long as the process lives."""
    if not any(value is other for other in _read_by_graphs):
        _read_by_graphs.append(value)


def lock() -> "threading.RLock":
    """A lock that a forked child finds free: fork waits until no thread holds it."""
    made = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=made.acquire, after_in_parent=made.release, after_in_child=made.release)
    return made
