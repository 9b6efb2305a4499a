"""Networks in, named float32 arrays out, and back; differences, norms and the digest of an architecture.

Only `to_arrays` and `load_arrays` know torch, and import it when called: a coordinator adds updates with numpy alone.
Names are `enhancer.<parameter>`, `recogniser.<parameter>` and, with a critic, `critic.<parameter>`, in the order of the
networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shared.errors import DataError
from shared.types import Arrays

if TYPE_CHECKING:
    from torch import Tensor

    from shared.networks import Networks

ENHANCER = "enhancer."
"""What the names of the enhancer's arrays begin with."""
PARTS = ("encoder", "decoder", "diagnosis", "prior")
"""What sites train apart, by the labels that they have; an update counts the images that moved each."""
_DECODER = ("narrow", "up", "gate", "bridge", "mask_head", "mask_heads")
_DIAGNOSIS = ("diagnosis_head",)
UNKNOWN_TYPES = (KeyError, TypeError, AttributeError)
"""What safetensors raises, by its version and the type, for arrays that numpy has no type for: bfloat16, float8."""


def part_of(name: str) -> str | None:
    """One of PARTS; None for what every image trains: the enhancer and the critic.

    A recogniser names its modules so that this holds: masks alone move the decoder, diagnoses alone the class head.
    """
    network, _, rest = name.partition(".")
    if network == "prior":
        return "prior"
    if network != "recogniser":
        return None
    module = rest.partition(".")[0]
    return "decoder" if module in _DECODER else "diagnosis" if module in _DIAGNOSIS else "encoder"


def parts_of(names: Iterable[str]) -> tuple[str, ...]:
    """The parts that weights of these names have, in the order of PARTS: what an update has to count images for."""
    found = set(map(part_of, names))
    return tuple(part for part in PARTS if part in found)


def learnt_and_prior(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """What is learnt, and what is a statistic that is only averaged; together all of `arrays`, each in their order."""
    learnt = {name: values for name, values in arrays.items() if part_of(name) != "prior"}
    return learnt, {name: values for name, values in arrays.items() if name not in learnt}


def to_arrays(networks: Networks) -> Arrays:
    """Copies of all weights; training on does not change them."""
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32, order="C", copy=True)
        for name, tensor in _state(networks)
    }


def load_arrays(networks: Networks, arrays: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy `arrays` into the networks, all or nothing; raises DataError naming the first array that does not fit."""
    import torch

    state = _state(networks)
    check_arrays(arrays, {name: tuple(tensor.shape) for name, tensor in state})
    with torch.no_grad():
        for name, tensor in state:
            tensor.copy_(torch.from_numpy(np.array(arrays[name], order="C")))


def _state(networks: Networks) -> list[tuple[str, Tensor]]:
    # A compiled module is used as is and never stands in Networks, so names stay those of the plain module.
    state = [
        (f"{part}.{name}", tensor)
        for part, network in networks.all.items()
        for name, tensor in network.state_dict().items()
    ]
    assert all(tensor.is_floating_point() for _, tensor in state), "counters cannot be averaged; use GroupNorm"
    return state


def check_arrays(arrays: Mapping[str, npt.NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Names, shapes, dtype and finiteness; raises DataError naming the first array that is wrong."""
    remedy = "use weights of the same campaign and version of Wardround"
    for name in arrays:
        if name not in shapes:
            raise DataError(f"weights hold {name!r}, which this architecture does not have; {remedy}")
    for name, shape in shapes.items():
        if name not in arrays:
            raise DataError(f"weights lack {name!r}; {remedy}")
        array = arrays[name]
        if tuple(array.shape) != tuple(shape):
            raise DataError(f"weights {name!r} must have shape {tuple(shape)}, got {tuple(array.shape)}; {remedy}")
        if array.dtype != np.float32:
            raise DataError(f"weights {name!r} must be float32, got {array.dtype}; {remedy}")
        if not np.isfinite(array).all():
            raise DataError(f"weights {name!r} hold values that are not finite; take the weights of an earlier round")


def architecture_digest(arrays: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """SHA-256 over names and shapes in order; equal digests mean that weights can be exchanged."""
    return shapes_digest({name: array.shape for name, array in arrays.items()})


def shapes_digest(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """`architecture_digest` of arrays of these shapes."""
    text = "\n".join(f"{name} {'x'.join(map(str, shape))} float32" for name, shape in shapes.items())
    return hashlib.sha256(text.encode()).hexdigest()


def arrays_digest(arrays: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """SHA-256 over names, shapes and values, whatever their order; of no arrays the empty text."""
    if not arrays:
        return ""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name], np.float32)
        digest.update(f"{name} {'x'.join(map(str, values.shape))}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def difference(new: Arrays, old: Arrays) -> Arrays:
    """new - old, in the order of `old`."""
    assert new.keys() == old.keys()
    return {name: new[name] - old[name] for name in old}


def add(old: Arrays, change: Arrays) -> Arrays:
    """old + change, in the order of `old`."""
    assert change.keys() == old.keys()
    return {name: old[name] + change[name] for name in old}


def norm(arrays: Mapping[str, npt.NDArray[np.float32]]) -> float:
    """L2 norm over all arrays together, summed in float64."""
    return float(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()) ** 0.5)
