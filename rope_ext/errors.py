"""Errors about arguments: "rope_ext: <argument> must <rule>, got <got>", then ": <cure>" where one is known.

    try:
        q = rope_ext.apply(q, cos, sin, layout="hbsd")
    except rope_ext.ArgumentError as error:
        error.argument, error.rule, error.got  # "layout", "be one of bshd, bhsd, sbhd, thd, shd", "'hbsd'"

Sizes and values raise ArgumentError, a ValueError; types and dtypes raise ArgumentTypeError, a TypeError.
"""

import re

# Found in a message of csrc, in which no `got` holds ": ".
_MESSAGE = re.compile(r"rope_ext: (.+?) must (.+?), got (.+?)(?:: (.+))?", re.DOTALL)


class _AboutArgument(Exception):
    """The part that both classes share; each also derives from a built-in exception.

    argument: name of the argument that the user gave.
    rule: what the argument must do or be, such as "be positive".
    got: the value, as the message shows it.
    cure: what to write instead, or "".
    """

    argument: str
    rule: str
    got: str
    cure: str

    def __init__(self, argument: str, rule: str | None = None, got: object = "", cure: str = "") -> None:
        """From the parts, or from one text, as pickle, a DataLoader and type(error)(text) make an error again.

        A text of another form has no parts: each is "".
        """
        if rule is None:
            found = _MESSAGE.fullmatch(str(argument))
            argument, rule, got, cure = found.groups("") if found else ("", "", "", "")
        else:
            # Not super().__init__(message), which torch.compile does not trace.
            self.args = (f"rope_ext: {argument} must {rule}, got {got}" + (f": {cure}" if cure else ""),)
        self.argument, self.rule, self.got, self.cure = argument, rule, str(got), cure


class ArgumentError(_AboutArgument, ValueError):
    """An argument has a size or a value that the function does not take. Attributes: argument, rule, got, cure."""


class ArgumentTypeError(_AboutArgument, TypeError):
    """An argument has a type or a dtype that the function does not take. Attributes: argument, rule, got, cure."""


def is_of_rope_ext(error: BaseException) -> bool:
    """Whether this package has raised the error. Errors of csrc reach Python as a text with this prefix."""
    return isinstance(error, _AboutArgument) or str(error).startswith("rope_ext: ")
