"""What binds compression to runs: how matrices in stored form open again."""

from compression.stored import left_out as encoder_alone  # noqa: F401  part of the binding
from compression.stored import rebuild, restore  # noqa: F401

KEEPS_EDIT = False
