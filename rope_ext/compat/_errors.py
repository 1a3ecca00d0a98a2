"""Errors of the functions of other libraries: in the words of their arguments, not of rope_ext's."""

import functools

import torch


def refused(argument, rule, got):
    """The ValueError "rope_ext: <argument> must <rule>, got <got>"; of a Tensor the shape."""
    return ValueError(f"rope_ext: {argument} must {rule}, got {_text(got)}")


def refused_type(argument, rule, got):
    """The TypeError of that form."""
    return TypeError(f"rope_ext: {argument} must {rule}, got {_text(got)}")


def name_of(dtype):
    """The name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


def _text(got):
    return f"shape {tuple(got.shape)}" if isinstance(got, torch.Tensor) else got


def called(**names):
    """Decorator: an error of `rope_ext.apply` about its argument x names names["x"], the argument of the user."""

    def decorate(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except (TypeError, ValueError) as error:
                start, _, rest = str(error).partition(" must ")
                name = names.get(start.removeprefix("rope_ext: "))
                if not start.startswith("rope_ext: ") or name is None:
                    raise
                raise type(error)(f"rope_ext: {name} must {rest}") from None

        return wrapper

    return decorate
