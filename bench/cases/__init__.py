"""The races, by part of the course. Each makes its inputs, makes sure that both runners compute the same, and hands both over.

A case is a function that takes a device and returns two functions without arguments: ours and the peer's.
Its docstring says what is timed; `peer` names the other side, `package` whose version to note."""
from bench.cases import data, generating, layers, learning, loop, machine, pretrained, text  # noqa: F401  importing registers
