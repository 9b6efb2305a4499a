"""The images that travel with a release: what an adaptation at a site must not get worse on.

They are of simulated patients (simulation/reference.py) or of a public data set; a federation's sites never send an
image, so they cannot be its patients'.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shared.checkpoint import write_atomically
from shared.errors import ConfigError, DataError

_TYPES = {
    "clean_NCHW": torch.float32,
    "degraded_NCHW": torch.float32,
    "mask_NHW": torch.uint8,
    "has_mask_N": torch.uint8,
}
MOST_IMAGES = 256


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """N slices on the campaign's grid and scale."""

    clean_NCHW: Tensor
    """float32."""
    degraded_NCHW: Tensor
    """float32; what a scanner would have given, of the same slices."""
    mask_NHW: Tensor
    """uint8 campaign codes; 0 where `has_mask_N` is 0."""
    has_mask_N: Tensor
    """uint8, 0 or 1."""

    def __len__(self) -> int:
        return self.clean_NCHW.shape[0]


def to_bytes(reference: Reference) -> bytes:
    """As safetensors."""
    from safetensors.torch import save

    return save({name: getattr(reference, name).to(kind, copy=True).contiguous() for name, kind in _TYPES.items()})


def from_bytes(content: bytes) -> Reference:
    """Raises DataError for what is not the bytes of a reference set."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError):
        raise _wrong("it is no safetensors file") from None
    if arrays.keys() != _TYPES.keys():
        raise _wrong(f"it must hold {', '.join(_TYPES)} and nothing else")
    reference = Reference(**arrays)
    _check(reference)
    return reference


def save_reference(path: Path, reference: Reference) -> None:
    """Write the file in one step; ConfigError where it cannot be written."""
    try:
        write_atomically(path, to_bytes(reference))
    except OSError:
        raise ConfigError(f"{path.name} cannot be written there; give a file in a folder that may be written") from None


def load_reference(path: Path) -> Reference:
    """Raises ConfigError where there is no such file, DataError where it is no reference set."""
    try:
        content = path.read_bytes()
    except OSError:
        raise ConfigError(
            f"no reference set {path.name!r} that can be read; make one: python -m simulation.reference FILE"
        ) from None
    return from_bytes(content)


def _check(reference: Reference) -> None:
    for name, kind in _TYPES.items():
        if getattr(reference, name).dtype != kind:
            raise _wrong(f"{name} must be {str(kind).removeprefix('torch.')}")
    clean_NCHW = reference.clean_NCHW
    if clean_NCHW.ndim != 4 or not 1 <= len(reference) <= MOST_IMAGES or 0 in clean_NCHW.shape:
        raise _wrong(f"clean_NCHW must be 1 to {MOST_IMAGES} images")
    number, _, *size = clean_NCHW.shape
    shapes = (reference.degraded_NCHW.shape, reference.mask_NHW.shape, reference.has_mask_N.shape)
    if shapes != (clean_NCHW.shape, (number, *size), (number,)):
        raise _wrong("its arrays must be of the same images")
    if not all(bool(images.isfinite().all()) for images in (clean_NCHW, reference.degraded_NCHW)):
        raise _wrong("it has values that are not finite")
    if bool((reference.has_mask_N > 1).any()):
        raise _wrong("has_mask_N must be 0 or 1")


def _wrong(what: str) -> DataError:
    return DataError(f"not a reference set: {what}; make one with: python -m simulation.reference FILE")
