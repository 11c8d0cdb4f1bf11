"""What binds LASER to runs: how a reduced model opens again."""

from laser.edit import rebuild  # noqa: F401  part of the binding
