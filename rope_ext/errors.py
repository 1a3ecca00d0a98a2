"""Errors about arguments: "rope_ext: <argument> must <rule>, got <got>", then ": <cure>" if one is known::

    try:
        q = rope_ext.apply(q, cos, sin, layout="hbsd")
    except rope_ext.ArgumentError as error:
        error.argument, error.rule, error.got  # "layout", "be one of bshd, bhsd, sbhd, thd, shd", "'hbsd'"

Sizes and values raise ArgumentError, a ValueError; types and dtypes raise ArgumentTypeError, a TypeError.
"""

import re

__all__ = ["ArgumentError", "ArgumentTypeError"]

# Found in a message of csrc, in which no `got` holds ": ".
_MESSAGE = re.compile(r"rope_ext: (.+?) must (.+?), got (.+?)(?:: (.+))?", re.DOTALL)


class _AboutArgument(Exception):
    """The common part of both classes; each also derives from a built-in exception.

    argument, rule, got, cure: as in `ArgumentError`.
    """

    argument: str
    rule: str
    got: str
    cure: str

    def __init__(self, argument: str, rule: str | None = None, got: object = "", cure: str = "") -> None:
        """Initialize from the parts, or from one text, as pickle, a DataLoader and type(error)(text) recreate an error.

        If the text has another form, each part is "".
        """
        if rule is None:
            found = _MESSAGE.fullmatch(str(argument))
            argument, rule, got, cure = found.groups("") if found else ("", "", "", "")
        else:
            # Not super().__init__(message), which torch.compile does not trace.
            self.args = (f"rope_ext: {argument} must {rule}, got {got}" + (f": {cure}" if cure else ""),)
        self.argument, self.rule, self.got, self.cure = argument, rule, str(got), cure


class ArgumentError(_AboutArgument, ValueError):
    """The size or the value of an argument is not accepted; a ValueError.

    Args:
        argument: name of the argument; or, without rule, the whole message.
        rule: what the argument must do or be, such as "be positive".
        got: the value, as the message shows it.
        cure: what to write instead. Default: "".

    Attributes:
        argument: name of the argument that the user passed.
        rule: what the argument must do or be, such as "be positive".
        got: the value, as the message shows it.
        cure: what to write instead, or "".
    """


class ArgumentTypeError(_AboutArgument, TypeError):
    """The type or the dtype of an argument is not accepted; a TypeError.

    Args:
        argument, rule, got, cure: as in `ArgumentError`.

    Attributes:
        argument: as in `ArgumentError`.
        rule: as in `ArgumentError`.
        got: as in `ArgumentError`.
        cure: as in `ArgumentError`.
    """


def is_of_rope_ext(error: BaseException) -> bool:
    """Return whether this package raised the error. Errors of csrc reach Python as a text with this prefix.

    Args:
        error: any exception.

    Returns:
        A bool.
    """
    return isinstance(error, _AboutArgument) or str(error).startswith("rope_ext: ")
