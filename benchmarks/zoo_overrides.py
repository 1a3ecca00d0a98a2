"""What the generic way of `zoo.py` gets wrong, by model type."""

CONFIGS = {}  # {type: {"path.of.field": value}}
CLASSES = {}  # {type: name of the class in its modeling file}
INPUTS = {}  # {type: function of the model that makes the arguments of its forward}
