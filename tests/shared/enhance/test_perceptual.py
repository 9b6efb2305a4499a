from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from shared.enhance.perceptual import VGG19, features_BCHW, layer_shapes, load_vgg19, perceptual_loss
from shared.errors import ConfigError, DataError

# torchvision's configuration "E", written out; numbers are positions in its `features`.
LAYERS: list[int | str] = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]


def torchvision_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in LAYERS:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision_features()
        for module in network:
            if isinstance(module, nn.Conv2d):  # so that 16 layers neither fade nor explode
                nn.init.kaiming_normal_(module.weight)
    return network.requires_grad_(False)


def named(features: nn.Sequential) -> dict[str, Tensor]:
    return {f"features.{name}": tensor for name, tensor in features.state_dict().items()}


@pytest.fixture(scope="module")
def file(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("private") / "vgg19.safetensors"
    save_file({**named(features), "classifier.0.weight": torch.zeros(2)}, path)
    yield path
    path.unlink()  # 80 MB, and pytest keeps folders


def images(channels: int, seed: int = 0) -> Tensor:
    return torch.rand(2, channels, 32, 32, generator=torch.Generator().manual_seed(seed))


def slow_twin(features: nn.Sequential, image: Tensor) -> Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    seen: Tensor = features[:36](((image if image.shape[1] == 3 else image.repeat(1, 3, 1, 1)) - mean) / std)
    return seen


def test_layers_stand_where_torchvision_has_them(features: nn.Sequential) -> None:
    convolutions = {n: (m.in_channels, m.out_channels) for n, m in enumerate(features) if isinstance(m, nn.Conv2d)}
    assert layer_shapes() == convolutions
    assert len(convolutions) == 16


@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_is_the_distance_behind_the_16th_convolution(
    features: nn.Sequential, file: Path, channels: int
) -> None:
    vgg = load_vgg19(str(file))
    one, other = images(channels), images(channels, seed=1)
    torch.testing.assert_close(features_BCHW(vgg, one), slow_twin(features, one), rtol=1e-4, atol=1e-4)
    expected = F.mse_loss(slow_twin(features, one), slow_twin(features, other))
    torch.testing.assert_close(perceptual_loss(vgg, one, other), expected, rtol=1e-3, atol=1e-5)
    assert float(perceptual_loss(vgg, one, one)) == 0


def test_the_gradient_reaches_the_enhanced_image_alone(file: Path) -> None:
    vgg = load_vgg19(str(file))
    enhanced, clean = images(1).requires_grad_(True), images(1, seed=1).requires_grad_(True)
    perceptual_loss(vgg, enhanced, clean).backward()
    assert enhanced.grad is not None
    assert float(enhanced.grad.abs().sum()) > 0
    assert clean.grad is None
    assert not any(tensor.requires_grad for pair in vgg.convolutions for tensor in pair)


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_vgg19(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", ["secret/vgg19.pth", "secret/vgg19.safetensors", "secret/vgg19.zip", "secret"])
def test_a_file_that_is_not_there_is_refused_without_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("objective.vgg_weights")) as caught:
        load_vgg19(str(tmp_path / name))
    assert str(tmp_path) not in str(caught.value)
    assert "secret/" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x02]q\x00.", b"PK\x03\x04 broken"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    message = refusal(path)
    assert "cannot be read as weights" in message
    assert str(tmp_path) not in message


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("attacked"),)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["attack.pth", "attack.safetensors"])
def test_a_file_that_would_run_code_runs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Attack()}, tmp_path / name)
    with pytest.raises((ConfigError, DataError), match=r"must be a .safetensors file|cannot be read as weights"):
        load_vgg19(str(tmp_path / name))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("name", "spoiled", "reason"),
    [
        ("features.5.bias", None, "got NoneType"),
        ("features.0.weight", torch.zeros(64, 1, 3, 3), r"got torch.float32 of shape \(64, 1, 3, 3\)"),
        ("features.2.bias", torch.zeros(64, dtype=torch.int64), "got torch.int64"),
        ("features.2.bias", torch.full((64,), float("nan")), "finite float32"),
        ("features.2.bias", torch.zeros(64, dtype=torch.float8_e4m3fn), r"got torch.float8_e4m3fn of shape \(64,\)"),
        ("features.0.weight", torch.zeros(64, 3, 3, 3, dtype=torch.float8_e5m2), "got torch.float8_e5m2"),
        ("features.0.bias", torch.zeros(64, dtype=torch.float64), "got torch.float64"),
    ],
)
def test_the_first_array_that_does_not_fit_is_named(
    features: nn.Sequential, tmp_path: Path, name: str, spoiled: Tensor | None, reason: str
) -> None:
    arrays = {**dict(list(named(features).items())[:6]), name: spoiled}
    save_file({key: tensor for key, tensor in arrays.items() if tensor is not None}, tmp_path / "odd.safetensors")
    message = refusal(tmp_path / "odd.safetensors")
    assert name in message
    assert re.search(reason, message)
    assert str(tmp_path) not in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    shapes = layer_shapes()
    arrays = {f"features.{n}.weight": torch.zeros(1, dtype=dtype).expand(w, c, 3, 3) for n, (c, w) in shapes.items()}
    arrays |= {f"features.{n}.bias": torch.full((w,), 0.5, dtype=dtype) for n, (_, w) in shapes.items()}
    path = tmp_path / "small.safetensors"
    save_file({name: array.contiguous() for name, array in arrays.items()}, path)
    vgg = load_vgg19(str(path))
    path.unlink()  # 40 MB
    assert all(weight.dtype == bias.dtype == torch.float32 for weight, bias in vgg.convolutions)
    assert float(vgg.convolutions[0][1][0]) == 0.5


def test_weights_move_between_devices_as_a_whole() -> None:
    vgg = VGG19(((torch.zeros(1), torch.ones(1)),)).to(torch.device("cpu"))
    assert float(vgg.convolutions[0][1]) == 1
