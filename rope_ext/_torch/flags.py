"""The bits of `flags`, an argument of all ops. Plain ints, because `|` of an enum.IntFlag costs 0.9 us.

csrc/core/flags.h has the same names and values; tests/test_source_tree.py compares them.
"""

LAYOUT_MASK = 7  # mask of the layout's index in reference.LAYOUTS
INTERLEAVED = 8  # x pairs channels (2i, 2i + 1); else (i, i + rotary_dim / 2)
INVERSE = 16  # rotate by the negative angle
TRANSPOSED = 32  # apply the transposed 2x2 blocks: the gradient with respect to x
FREQUENCIES = 64  # cos and sin are the high and low parts of inv_freq in revolutions per position, not tables
ROUND_PRODUCTS = 128  # round each product to 16 bits before the sum, as eager code does (rounding="eager")
OTHER_PAIRING = 256  # the result has the other pairing
SAYS_WIDTH = 512  # the caller states the width of the tables, in PER_CHANNEL (per_channel is not None)
PER_CHANNEL = 1024  # with SAYS_WIDTH: tables have one entry per channel; else one per pair
