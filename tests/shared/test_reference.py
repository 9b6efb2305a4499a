"""Reference sets: what is saved is loaded, and what is none is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shared.errors import ConfigError, DataError
from shared.reference import Reference, from_bytes, load_reference, save_reference, to_bytes


@pytest.fixture
def reference() -> Reference:
    rng = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 1, 8, 8, generator=rng)
    mask = torch.randint(0, 3, (3, 8, 8), generator=rng, dtype=torch.uint8)
    return Reference(clean, clean + 0.1, mask, torch.tensor([1, 0, 1], dtype=torch.uint8))


def test_what_is_saved_is_loaded(reference: Reference, tmp_path: Path) -> None:
    save_reference(tmp_path / "x.safetensors", reference)
    found = load_reference(tmp_path / "x.safetensors")
    for name in ("clean_NCHW", "degraded_NCHW", "mask_NHW", "has_mask_N"):
        assert torch.equal(getattr(found, name), getattr(reference, name))
    assert len(found) == 3


def test_what_is_no_reference_set_is_refused(reference: Reference, tmp_path: Path) -> None:
    wrong = {
        "same images": replace(reference, mask_NHW=reference.mask_NHW[:2]),
        "not finite": replace(reference, degraded_NCHW=reference.degraded_NCHW * float("nan")),
        "0 or 1": replace(reference, has_mask_N=reference.has_mask_N * 2),
        "1 to 256": Reference(*(getattr(reference, name)[:0] for name in Reference.__slots__)),
    }
    for reason, each in wrong.items():
        with pytest.raises(DataError, match=reason):
            from_bytes(to_bytes(each))
    with pytest.raises(DataError, match="no safetensors file"):
        from_bytes(to_bytes(reference)[:-5])
    from safetensors.torch import save

    with pytest.raises(DataError, match="must hold"):
        from_bytes(save({"clean_NCHW": reference.clean_NCHW}))
    whole = {name: getattr(reference, name) for name in Reference.__slots__}
    with pytest.raises(DataError, match="clean_NCHW must be float32"):
        from_bytes(save({**whole, "clean_NCHW": reference.clean_NCHW.double()}))
    with pytest.raises(ConfigError, match="no reference set"):
        load_reference(tmp_path / "none")
