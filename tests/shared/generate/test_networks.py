"""The generator's networks: sizes, canvases, the ControlNet's start, seeds, and weights that fit or are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from shared.config import CampaignConfig, GenerateConfig
from shared.errors import DataError
from shared.generate.networks import (
    LATENT_CHANNELS,
    REDUCTION,
    TRAINED,
    Generator,
    build_generator,
    frozen_parts,
    load_parts,
    load_start,
    parts_arrays,
    start_controlnet,
)
from shared.seeding import generator
from shared.types import Arrays

BATCH = 2


def generating(campaign: CampaignConfig, image_size: tuple[int, int] = (32, 32), **options: object) -> CampaignConfig:
    generate = GenerateConfig(kind="emit-diff", **options)  # type: ignore[arg-type]
    return replace(campaign, data=replace(campaign.data, image_size=image_size), generate=generate)


@pytest.fixture
def built(campaign: CampaignConfig) -> Generator:
    """Size S at 32 x 32: edges and outlines as hint, prompts embedded."""
    return build_generator(generating(campaign))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "networks", len(shape)))


def parameters(built: Generator) -> dict[str, int]:
    return {name: sum(p.numel() for p in network.parameters()) for name, network in built.all.items()}


@pytest.mark.parametrize(
    ("size", "without", "with_controlnet"), [("S", 1_187_804, 1_719_996), ("M", 4_794_588, 6_705_084)]
)
def test_a_generator_is_as_large_as_its_config_says(
    campaign: CampaignConfig, size: str, without: int, with_controlnet: int
) -> None:
    counts = parameters(build_generator(generating(campaign, size=size)))
    del counts["prompts"]  # a few vectors; as many as the campaign has words
    assert sum(counts.values()) == with_controlnet
    assert with_controlnet - counts["controlnet"] == without


@pytest.mark.parametrize(
    ("levels", "size", "canvas"),
    [("S", (64, 56), (64, 56)), ("S", (72, 40), (72, 40)), ("M", (64, 56), (64, 64)), ("M", (72, 40), (80, 48)),
     ("M", (8, 8), (16, 16))],
)  # fmt: skip
def test_images_of_any_size_lie_on_a_canvas_and_come_back(
    campaign: CampaignConfig, levels: str, size: tuple[int, int], canvas: tuple[int, int]
) -> None:
    built = build_generator(generating(campaign, size, size=levels))
    assert built.canvas == canvas
    image_BCHW = torch.rand(BATCH, 1, *size, generator=generator(0, "canvas"))
    assert built.on_canvas(image_BCHW).shape == (BATCH, 1, *canvas)
    assert torch.equal(built.off_canvas(built.on_canvas(image_BCHW)), image_BCHW)
    assert float(built.on_canvas(image_BCHW).sum()) == pytest.approx(float(image_BCHW.sum()), rel=1e-5), "0 around it"
    torch.testing.assert_close(built.shuffled(built.unshuffled(image_BCHW)), image_BCHW)
    with torch.inference_mode():
        latent_BCHW = built.encode(image_BCHW)
        decoded_BCHW = built.decode(latent_BCHW)
        hint_BCHW = torch.rand(BATCH, 4, *size, generator=generator(0, "hint"))
        embedding_BCHW = built.hint_embedding(hint_BCHW)
        told_BCHW = built.denoiser(latent_BCHW, torch.tensor([3, 999]), built.prompts(torch.ones(2, 3).long()))
    assert latent_BCHW.shape == (BATCH, *built.latent_shape)
    assert built.latent_shape == (LATENT_CHANNELS, canvas[0] // REDUCTION, canvas[1] // REDUCTION)
    assert embedding_BCHW.shape[2:] == latent_BCHW.shape[2:]
    assert told_BCHW.shape == latent_BCHW.shape
    assert decoded_BCHW.shape == image_BCHW.shape
    assert decoded_BCHW.min() >= 0
    assert decoded_BCHW.max() <= 1


def test_the_autoencoder_reads_black_around_an_image_and_values_in_minus_1_to_1(campaign: CampaignConfig) -> None:
    built = build_generator(generating(campaign, (8, 8), size="M"))
    read = built.unshuffled(torch.ones(1, 1, 8, 8))
    assert read.shape == (1, 16, 4, 4)
    assert set(read.unique().tolist()) == {-1.0, 1.0}
    assert int((read == 1).sum()) == 64


def test_the_scale_of_latents_is_undone_before_decoding(built: Generator) -> None:
    image_BCHW = torch.rand(BATCH, 1, 32, 32, generator=generator(0, "scale"))
    with torch.inference_mode():
        latent_BCHW, decoded_BCHW = built.encode(image_BCHW), built.decode(built.encode(image_BCHW))
    built.latents.scale.fill_(0.25)
    with torch.inference_mode():
        torch.testing.assert_close(built.encode(image_BCHW), 0.25 * latent_BCHW)
        torch.testing.assert_close(built.decode(built.encode(image_BCHW)), decoded_BCHW)
    assert not any(p is built.latents.scale for p in built.latents.parameters()), "not trained"


def test_decoding_has_a_gradient(built: Generator) -> None:
    latent_BCHW = (0.1 * noise(1, *built.latent_shape)).requires_grad_()
    built.decode(latent_BCHW).sum().backward()
    assert latent_BCHW.grad is not None
    assert latent_BCHW.grad.count_nonzero()


def told(built: Generator, hint_BCHW: Tensor | None) -> Tensor:
    """The denoiser's prediction, with what MONAI's ControlNet makes of a hint or without."""
    latent_BCHW, time_B = noise(BATCH, *built.latent_shape), torch.tensor([10, 700])
    context_BWC = built.prompts(torch.tensor([[2, 3, 4], [0, 0, 0]]))
    if hint_BCHW is None:
        return built.denoiser(latent_BCHW, time_B, context_BWC)
    unshuffled_BCHW = F.pixel_unshuffle(built.on_canvas(hint_BCHW), 2)
    down, mid = built.controlnet(latent_BCHW, time_B, unshuffled_BCHW, context=context_BWC)
    return built.denoiser(
        latent_BCHW, time_B, context_BWC, down_block_additional_residuals=down, mid_block_additional_residual=mid
    )


@pytest.mark.parametrize("levels", ["S", "M"])
def test_at_its_start_a_controlnet_changes_nothing(campaign: CampaignConfig, levels: str) -> None:
    built = build_generator(generating(campaign, size=levels))
    hint_BCHW = torch.rand(BATCH, 4, 32, 32, generator=generator(0, "hint"))
    with torch.inference_mode():
        assert torch.equal(told(built, hint_BCHW), told(built, None))
        for joint in (*built.controlnet.controlnet_down_blocks, built.controlnet.controlnet_mid_block):
            assert all(p.count_nonzero() == 0 for p in joint.parameters())
        assert built.hint_embedding(hint_BCHW).count_nonzero() == 0


def test_from_its_start_a_controlnet_learns_the_joints_and_then_the_hint(built: Generator) -> None:
    hint_BCHW = torch.rand(BATCH, 4, 32, 32, generator=generator(0, "hint"))
    with torch.no_grad():  # a fresh denoiser ends in a convolution of zeros, through which nothing is felt
        built.denoiser.out[2].conv.weight.normal_(generator=generator(0, "out"))
    optimiser = torch.optim.SGD(built.controlnet.parameters(), lr=1.0)
    for _ in range(2):
        optimiser.zero_grad()
        told(built, hint_BCHW).square().mean().backward()
        optimiser.step()
    first = built.controlnet.controlnet_cond_embedding.conv_out.conv.weight
    assert first.grad is not None
    assert first.grad.count_nonzero()
    with torch.inference_mode():
        assert not torch.equal(told(built, hint_BCHW), told(built, hint_BCHW.flip(0)))


def test_a_controlnet_starts_as_a_copy_of_the_denoisers_encoder(built: Generator) -> None:
    own, copied = built.controlnet.state_dict(), built.denoiser.state_dict()
    shared = own.keys() & copied.keys()
    assert {name.partition(".")[0] for name in shared} == {"conv_in", "time_embed", "down_blocks", "middle_block"}
    assert all(torch.equal(own[name], copied[name]) for name in shared)
    rest = {name.partition(".")[0] for name in own.keys() - shared}
    assert rest == {"controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block"}
    with torch.no_grad():
        built.denoiser.conv_in.conv.weight.fill_(7)
        built.controlnet.controlnet_mid_block.conv.weight.fill_(3)
    start_controlnet(built)
    assert (built.controlnet.conv_in.conv.weight == 7).all()
    assert (built.controlnet.controlnet_mid_block.conv.weight == 3).all(), "joints stay"


def test_a_hint_embedding_is_what_the_controlnet_adds_inside(campaign: CampaignConfig) -> None:
    built = build_generator(generating(campaign, (40, 24), size="M"))
    added: list[Tensor] = []
    embed = built.controlnet.controlnet_cond_embedding
    with torch.no_grad():
        embed.conv_out.conv.weight.normal_(generator=generator(0, "joint"))
        hint_BCHW = torch.rand(BATCH, 4, 40, 24, generator=generator(0, "hint"))
        handle = embed.register_forward_hook(lambda _, __, found: added.append(found))
        told(built, hint_BCHW)
        handle.remove()
        assert torch.equal(built.hint_embedding(hint_BCHW), added[0])
    assert added[0].count_nonzero()


def test_equal_seeds_make_equal_weights_and_others_do_not(campaign: CampaignConfig) -> None:
    ours, again, other = (build_generator(replace(generating(campaign), seed=seed)) for seed in (0, 0, 1))
    arrays = [parts_arrays(each, each.all) for each in (ours, again, other)]
    assert all((arrays[0][name] == arrays[1][name]).all() for name in arrays[0])
    assert not (arrays[0]["denoiser.conv_in.conv.weight"] == arrays[2]["denoiser.conv_in.conv.weight"]).all()


def test_an_option_of_one_network_leaves_the_weights_of_the_others(campaign: CampaignConfig) -> None:
    usual = build_generator(generating(campaign))
    other = build_generator(generating(campaign, edges="hed", box=True, organs=("BRAIN",)))
    for part in ("autoencoder", "denoiser"):
        ours, theirs = parts_arrays(usual, (part,)), parts_arrays(other, (part,))
        assert all((ours[name] == theirs[name]).all() for name in ours)
    assert "hed" in other.all
    assert "hed" not in usual.all


def test_building_touches_no_global_generator(campaign: CampaignConfig) -> None:
    before = torch.random.get_rng_state()
    build_generator(generating(campaign, edges="hed"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_phase_trains_its_networks_and_has_what_came_before(campaign: CampaignConfig) -> None:
    built = build_generator(generating(campaign, edges="hed"))
    phases = ("edges", "autoencoder", "denoiser", "controlnet")
    done: set[str] = set()
    for phase in phases:
        assert set(TRAINED[phase]) <= built.all.keys()
        assert set(frozen_parts(built, phase)) == done
        done |= {*TRAINED[phase], *(("latents",) if phase == "autoencoder" else ())}
    assert set(frozen_parts(built, "train")) == done == built.all.keys()
    assert "hed" not in frozen_parts(build_generator(generating(campaign)), "train")


def test_weights_travel_by_name_and_are_copies(built: Generator, campaign: CampaignConfig) -> None:
    arrays = parts_arrays(built, TRAINED["denoiser"])
    assert {name.partition(".")[0] for name in arrays} == {"denoiser", "prompts"}
    kept = {name: array.copy() for name, array in arrays.items()}
    with torch.no_grad():
        for network in built.all.values():
            for parameter in network.parameters():
                parameter.add_(1)
    assert all((arrays[name] == kept[name]).all() for name in arrays)
    other = build_generator(replace(generating(campaign), seed=1))
    load_parts(other, arrays, TRAINED["denoiser"])
    back = parts_arrays(other, TRAINED["denoiser"])
    assert back.keys() == arrays.keys()
    assert all((arrays[name] == back[name]).all() for name in arrays)
    arrays["prompts.place"][:] = 5
    assert not (other.prompts.state_dict()["place"] == 5).any(), "nor do loaded weights hang on the arrays"


def wrong_ways(arrays: Arrays) -> dict[str, Arrays]:
    """Reason -> arrays whose last is wrong."""
    last = list(arrays)[-1]
    nan = arrays[last].copy()
    nan.flat[0] = float("nan")
    return {
        "lack": {name: array for name, array in arrays.items() if name != last},
        "does not have": {**arrays, "denoiser.more": arrays[last]},
        "shape": {**arrays, last: arrays[last][None]},
        "float32": {**arrays, last: arrays[last].astype("float64")},  # type: ignore[dict-item]
        "finite": {**arrays, last: nan},
    }


def test_weights_that_do_not_fit_change_nothing(built: Generator, campaign: CampaignConfig) -> None:
    parts = ("autoencoder", "latents", "denoiser")
    before = parts_arrays(built, parts)
    for reason, arrays in wrong_ways(
        parts_arrays(build_generator(replace(generating(campaign), seed=1)), parts)
    ).items():
        with pytest.raises(DataError, match=reason):
            load_parts(built, arrays, parts)
    for scale in (0.0, -1.0, 1e-30, 1e30):
        with pytest.raises(DataError, match="must be 1e-06 to 1e"):
            load_parts(built, {"latents.scale": torch.full((1,), scale).numpy()}, ("latents",))
    after = parts_arrays(built, parts)
    assert all((before[name] == after[name]).all() for name in before)


def start_file(path: Path, built: Generator, parts: tuple[str, ...]) -> str:
    save_file({name: torch.from_numpy(array) for name, array in parts_arrays(built, parts).items()}, path)
    return str(path)


def test_a_start_is_read_and_its_denoiser_starts_the_controlnet(campaign: CampaignConfig, tmp_path: Path) -> None:
    earlier = build_generator(replace(generating(campaign), seed=1))
    earlier.latents.scale.fill_(0.5)
    parts = ("autoencoder", "latents", "denoiser", "prompts")
    path = start_file(tmp_path / "start.safetensors", earlier, parts)
    built = build_generator(generating(campaign, start=path))
    ours, theirs = parts_arrays(built, parts), parts_arrays(earlier, parts)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert torch.equal(built.controlnet.conv_in.conv.weight, earlier.denoiser.conv_in.conv.weight)


def test_a_start_with_a_controlnet_keeps_it(campaign: CampaignConfig, tmp_path: Path) -> None:
    earlier = build_generator(replace(generating(campaign), seed=1))
    with torch.no_grad():
        earlier.controlnet.conv_in.conv.weight.fill_(2)
    path = start_file(tmp_path / "start.safetensors", earlier, ("denoiser", "controlnet"))
    built = build_generator(generating(campaign, start=path))
    assert (built.controlnet.conv_in.conv.weight == 2).all()


def test_a_start_that_does_not_fit_is_refused_in_one_line(
    built: Generator, campaign: CampaignConfig, tmp_path: Path
) -> None:
    path = tmp_path / "start.safetensors"
    before = parts_arrays(built, built.all)

    def refused(reason: str) -> None:
        with pytest.raises(DataError, match=reason) as caught:
            load_start(built, str(path))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    refused("expected a safetensors file")
    path.write_bytes(b"\x80\x04pickled")
    refused("expected a safetensors file")
    save_file({"latents.scale": torch.ones(1, dtype=torch.bfloat16)}, path)
    refused("float32|types")
    save_file({}, path)
    refused("holds nothing; expected arrays of autoencoder")
    save_file({"enhancer.weight": torch.ones(1)}, path)
    refused("holds enhancer; expected arrays of autoencoder")
    save_file({"latents.scale": torch.ones(1), "hed.fuse.bias": torch.ones(1)}, path)
    refused("holds hed")
    save_file({"autoencoder.more": torch.ones(1)}, path)
    refused("generate.start: weights hold 'autoencoder.more'")
    start_file(path, build_generator(generating(campaign, size="M")), ("denoiser",))
    refused("generate.start: weights .*'denoiser")
    after = parts_arrays(built, built.all)
    assert all((before[name] == after[name]).all() for name in before)
