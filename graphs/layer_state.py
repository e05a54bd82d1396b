"""The state of a layer: what it keeps of the tokens it has read, and how graphs hand it on.

Whatever kind of state a layer keeps, each tensor of it is a graph input and a graph output of the
same type and shape, named by what it is and by the number of the layer. The runtime binds one
buffer to both: the graph updates it in place. What a state is made of is up to the kind of layer:

    latent attention    a cache with a row for each token (graphs/cache_types.py)

A state whose size does not grow with the context, such as that of linear attention, would be named
and handed on in the same way. Standard library only.
"""

from __future__ import annotations


def state_input(name: str, layer: int) -> str:
    """Name of the graph input with the state ``name`` of ``layer``."""
    return f"{name}.{layer}"


def state_output(name: str, layer: int) -> str:
    """Name of the graph output that is written in place of ``state_input(name, layer)``."""
    return f"{name}_out.{layer}"


def layer_of_state(input_name: str) -> int:
    """The layer whose state the graph input ``input_name`` holds."""
    return int(input_name.rpartition(".")[2])
