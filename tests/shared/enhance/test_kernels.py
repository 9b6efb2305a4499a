"""The wiring of every enhancer against one worked out by hand, and what the trace must not get wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared.config import EnhancerConfig
from shared.enhance.kernels import Wiring, wiring
from shared.enhance.networks import build_enhancer
from shared.errors import ConfigError


def ties(found: Wiring) -> set[frozenset[str]]:
    """Groups of channels, each as the set of `module>channel` that make it and `channel>module` that read it."""
    members: dict[int, set[str]] = {}
    for name, groups in {**found.writes, **found.scales}.items():
        for channel, group in enumerate(groups.tolist()):
            members.setdefault(group, set()).add(f"{name}>{channel}")
    for name, groups in found.reads.items():
        for channel, group in enumerate(groups.tolist()):
            members.setdefault(group, set()).add(f"{channel}>{name}")
    return {frozenset(group) for group in members.values()}


def both(*names: str) -> set[frozenset[str]]:
    """The same for channel 0 and for channel 1; `c` stands for the number."""
    return {frozenset(name.replace("c", str(channel)) for name in names) for channel in (0, 1)}


def enhancer(kind: str, *, depth: int = 2, channels: int = 1, attention: bool = False) -> nn.Module:
    config = EnhancerConfig(kind=kind, channels=2, depth=depth, attention=attention)  # type: ignore[arg-type]
    return build_enhancer(config, channels, 0)


def fixed_names(found: Wiring) -> set[str]:
    return {name for name, groups in found.writes.items() if bool(found.fixed_G[groups].any())}


def test_three_convolutions_are_a_chain() -> None:
    found = wiring(enhancer("cnn3"), 1)
    image = {frozenset({"0>body.0", "body.4>0"})}
    # "c" is the channel; the names of these modules have none of that letter
    assert ties(found) == image | both("body.0>c", "c>body.2") | both("body.2>c", "c>body.4")
    assert found.first == ("body.0",)
    assert fixed_names(found) == {"body.4"}


def test_the_blocks_of_srresnet_share_the_channels_that_they_are_added_to() -> None:
    found = wiring(enhancer("srresnet", depth=1), 1)
    trunk = [
        {
            f"stem.0>{channel}",
            f"{channel}>blocks.0.body.0",
            f"blocks.0.body.3>{channel}",
            f"blocks.0.body.4>{channel}",
            f"{channel}>gather.0",
            f"gather.0>{channel}",
            f"{channel}>correction",
        }
        for channel in (0, 1)
    ]
    inner = [
        {f"blocks.0.body.0>{channel}", f"blocks.0.body.1>{channel}", f"{channel}>blocks.0.body.3"} for channel in (0, 1)
    ]
    image = {"0>stem.0", "correction>0"}
    assert ties(found) == {frozenset(group) for group in (*trunk, *inner, image)}
    assert fixed_names(found) == {"correction"}


def test_the_skip_of_the_unet_ties_the_way_down_to_what_comes_up() -> None:
    found = wiring(enhancer("unet"), 1)
    skip = [
        {f"stem.0>{channel}", f"{channel}>down.0.0", f"narrow.0>{channel}", f"{channel}>up.0.0"} for channel in (0, 1)
    ]
    down = [{f"down.0.0>{channel}", f"down.0.1>{channel}", f"{channel}>middle.0"} for channel in range(4)]
    middle = [{f"middle.0>{channel}", f"middle.1>{channel}", f"{channel}>narrow.0"} for channel in range(4)]
    up = [{f"up.0.0>{channel}", f"up.0.1>{channel}", f"{channel}>correction"} for channel in (0, 1)]
    image = {"0>stem.0", "correction>0"}
    assert ties(found) == {frozenset(group) for group in (*skip, *down, *middle, *up, image)}
    assert found.first == ("stem.0",)


@pytest.mark.parametrize("attention", [False, True])
def test_todnet_adds_what_it_encoded_and_attention_reads_and_adds_the_deepest(attention: bool) -> None:
    found = wiring(enhancer("todnet", attention=attention), 1)
    skip = [{f"encode.0>{c}", f"{c}>encode.1", f"decode.0>{c}", f"{c}>residual"} for c in (0, 1)]
    parts = ("query", "key", "value") if attention else ()
    deep = [
        {f"encode.1>{c}", f"{c}>decode.0"}
        | {f"{c}>attention.{part}" for part in parts}
        | ({f"attention.value>{c}"} if attention else set())
        for c in range(4)
    ]
    image = {"0>encode.0", "residual>0"}
    assert ties(found) == {frozenset(group) for group in (*skip, *deep, image)}


class Concatenating(nn.Module):
    """A U-Net's way: the skip is put behind what comes up through a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.down = nn.Conv2d(2, 3, 2, stride=2)
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.first(image).relu()
        joined: Tensor = self.last(self.norm(torch.cat([self.up(self.down(first)), first], dim=1)))
        return image - joined


def test_a_concatenation_shifts_the_channels_that_it_reads() -> None:
    found = wiring(Concatenating(), 1)
    assert found.reads["last"].tolist()[:4] == found.writes["up"].tolist()
    assert found.reads["last"].tolist()[4:] == found.writes["first"].tolist() == found.reads["down"].tolist()
    assert found.scales["norm"].tolist() == found.reads["last"].tolist()
    assert fixed_names(found) == {"last"}


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.middle, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self.depthwise(self.first(image))))
        return out


def test_what_a_grouped_convolution_reads_and_makes_is_fixed() -> None:
    assert fixed_names(wiring(Grouped(), 1)) == {"first", "depthwise", "last"}


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 4, 1), nn.Conv2d(2, 2, 1)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        features = self.first(image)
        out: Tensor = self.last(self.again(self.again(features[:, 1:3])))
        return out


def test_a_slice_is_found_in_its_place_and_a_convolution_called_twice_ties_its_ends() -> None:
    found = wiring(Sliced(), 1)
    first, again = found.writes["first"].tolist(), found.writes["again"].tolist()
    assert found.reads["again"].tolist() == first[1:3] == again == found.reads["last"].tolist()
    assert found.fixed_G[first].tolist() == [True, False, False, True], "nobody reads the outer ones"


class Branching(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image if image.mean() > 0 else -image


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.body(image)
        return out


@pytest.mark.parametrize("network", [Branching(), Shuffled()])
def test_what_cannot_be_followed_is_said_in_one_line(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match="cannot be followed") as error:
        wiring(network, 1)
    assert "\n" not in str(error.value)
