"""Cached values that outlive the call that creates them: ordinary tensors, whatever modes the caller is in."""

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
CPU, _META = torch.device("cpu"), torch.device("meta")  # comparing with them is six times as fast as `device.type`
_caches: list[Callable[[], None]] = []
_read_by_graphs: list[object] = []  # a captured CUDA graph reads their memory for the lifetime of the process


def made_apart(make: Callable[..., _R], *arguments: Any) -> _R:
    """Call `make` with these arguments in a new thread.

    Modes such as FakeTensorMode, a default device, transforms of torch.func, jit traces, inference mode and autocast
    are per thread. None of them is active in a new thread, so the result is the same for every caller.
    """
    made: Future[_R] = Future()

    def run() -> None:
        try:
            made.set_result(make(*arguments))
        except BaseException as error:
            made.set_exception(error)

    # Not an executor, which acquires a process-wide lock: a signal handler that calls this would deadlock.
    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is shutting down and starts no threads
        return make(*arguments)
    thread.join()
    return made.result()


def kept(make: Callable[..., _R]) -> Callable[..., _R]:
    """Decorate make: it is called once for equal arguments, by `made_apart`; the last 256 results used are kept."""

    @functools.lru_cache(maxsize=256)
    @functools.wraps(make)
    def cached(*arguments: Any) -> _R:
        if any(is_capturing(device) for device in arguments if isinstance(device, torch.device)):
            rule, got = "be computed before a CUDA graph is captured", "a first call with these arguments"
            raise RuntimeError(f"rope_ext: frequencies must {rule}, got {got}: make the same call before the capture")
        return made_apart(make, *arguments)

    _caches.append(cached.cache_clear)
    return cached


def named(make: Callable[..., tuple[Any, ...]]) -> Callable[..., str]:
    """Decorate make, for torch.compile: it is called once for equal arguments, while a graph is traced.

    The decorated function returns the name of an attribute of `in_graphs` that holds the result, a tuple. Dynamo treats
    the name as a constant, and the tensors as those of a module that no call changes. Tensors that were constants
    themselves would fail with symbolic sizes.
    """

    @constant_in_graphs
    def name_of(*arguments: object) -> str:
        # The name contains the arguments, because guards compare shapes but not numbers: equal names mean equal
        # values, whatever graph reads them.
        name = f"{make.__name__}_{hashlib.sha256(repr(arguments).encode()).hexdigest()}"
        if not hasattr(in_graphs, name):
            values = made_apart(make, *arguments)
            for value in values:
                if isinstance(value, torch.Tensor):
                    mark_static_address(value)
                    if value.is_cuda:  # the graph may run on another stream
                        torch.cuda.synchronize(value.device)
            setattr(in_graphs, name, values)
        return name

    return name_of


def clear() -> None:
    """Forget all values except those that graphs read: recompiling would reach the recompile limit of dynamo."""
    for forget in _caches:
        forget()


def clears(forget: Callable[[], None]) -> Callable[[], None]:
    """Decorate forget, which `clear` then calls."""
    _caches.append(forget)
    return forget


def takes_ordinary(device: torch.device) -> bool:
    """Whether the caller can use ordinary tensors: not on meta, nor under a mode that creates others."""
    return device != _META and (not dispatch_modes() or type(torch.empty(0, device=device)) is torch.Tensor)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is capturing the work of this thread on device."""
    return device != CPU and device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def keep_for_graph(value: object) -> None:
    """Keep value, which a CUDA graph reads that is being captured, for the lifetime of the process."""
    if not any(value is other for other in _read_by_graphs):
        _read_by_graphs.append(value)


def lock() -> "threading.RLock":
    """A lock that is free in a forked child: fork waits until no thread holds it."""
    made = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=made.acquire, after_in_parent=made.release, after_in_child=made.release)
    return made
