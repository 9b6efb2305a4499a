from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from client.ingest.geometry import MIN_SLICES_TO_REORDER
from client.ingest.intensity import MOST_VALUES
from client.ingest.pixels import LUMA
from shared import export_metadata
from shared.config import CampaignConfig, EnhancerConfig, IngestConfig, IntensityConfig, LearnConfig, campaign_digest
from shared.export_metadata import input_meaning, metadata

OUTPUTS = ("mask_logits", "diagnosis_logits", "saliency")


def with_intensity(campaign: CampaignConfig, *, spacing_mm: Any = None, **intensity: Any) -> CampaignConfig:
    ingest = IngestConfig(modalities=("MR",), spacing_mm=spacing_mm, intensity=IntensityConfig(**intensity))
    return replace(campaign, data=replace(campaign.data, ingest=ingest))


def alone(campaign: CampaignConfig, **changes: Any) -> CampaignConfig:
    none, plain = EnhancerConfig(kind="none"), replace(campaign.objective, kind="plain")
    return replace(campaign, **{"enhance": none, "objective": plain, **changes})


def test_every_key_is_documented(campaign: CampaignConfig) -> None:
    keys = metadata(campaign, "recogniser", OUTPUTS).keys() | metadata(campaign, "enhancer", ("enhanced",)).keys()
    documented = set((export_metadata.__doc__ or "").replace(",", " ").split())
    assert keys <= documented


def test_values_are_words_or_json(campaign: CampaignConfig) -> None:
    told = metadata(with_intensity(campaign, rule="percentile", low=0.5, high=99.5), "recogniser", OUTPUTS)
    assert told["campaign_digest"] == campaign_digest(with_intensity(campaign, rule="percentile", low=0.5, high=99.5))
    assert json.loads(told["masks"]) == ["background", "organ", "lesion"]
    assert json.loads(told["diagnoses"]) == ["none", "lesion"]
    assert json.loads(told["image_size"]) == [32, 32]
    assert json.loads(told["modalities"]) == ["MR"]
    assert json.loads(told["spacing_mm"]) is None
    assert json.loads(told["intensity_clip"]) is True
    assert (float(told["intensity_low"]), float(told["intensity_high"])) == (0.5, 99.5)
    assert told["wardround"]


def test_classes_are_named_in_the_order_of_the_channels(campaign: CampaignConfig) -> None:
    told = metadata(campaign, "recogniser", OUTPUTS)
    assert (
        "softmax over axis 1 gives each pixel's probabilities of 0 background, 1 organ, 2 lesion." in told[OUTPUTS[0]]
    )
    assert "softmax over axis 1 gives each image's probabilities of 0 none, 1 lesion." in told[OUTPUTS[1]]
    assert "|d score / d image|" in told[OUTPUTS[2]]
    assert "most probable diagnosis" in told[OUTPUTS[2]]
    assert "closed form" in told[OUTPUTS[2]]
    segments = alone(campaign, learn=LearnConfig(kind="umtl", diagnose=False))
    assert json.loads(metadata(segments, "recogniser", OUTPUTS[:1])["diagnoses"]) == []


@pytest.mark.parametrize(
    ("intensity", "words"),
    [
        ({"rule": "percentile", "low": 0.5, "high": 99.5}, "0 is percentile 0.5 and 1 percentile 99.5 of each series"),
        ({"rule": "window", "low": -160, "high": 240}, "0 is -160 and 1 is 240 in the modality's unit (CT: HU)"),
        ({"rule": "range"}, "0 is the smallest and 1 the largest value that the file's bit depth can hold"),
    ],
)
def test_the_intensity_rule_stands_in_words_and_numbers(
    intensity: dict[str, Any], words: str, campaign: CampaignConfig
) -> None:
    for clip, held in ((True, "; clipped."), (False, "; not clipped.")):
        agreed = with_intensity(campaign, clip=clip, **intensity)
        told = metadata(agreed, "recogniser", OUTPUTS)
        assert told["intensity_scale"].startswith(words)
        assert told["intensity_scale"].endswith(held)
        assert told["intensity_scale"] in input_meaning(agreed, "recogniser")
        # Ends that the rule does not read would be taken for ends.
        assert ("intensity_low" in told, "intensity_high" in told) == (intensity["rule"] != "range",) * 2


def test_the_steps_of_the_preparation_are_those_of_the_ingest(campaign: CampaignConfig) -> None:
    agreed = with_intensity(campaign, spacing_mm=(5.0, 0.75, 1.5), rule="percentile", low=1, high=99)
    steps = json.loads(metadata(agreed, "recogniser", OUTPUTS)["preparation"])
    text = " ".join(steps)
    assert "5 mm between slices, 0.75 mm between rows, 1.5 mm between columns" in text
    assert f"A stack of {MIN_SLICES_TO_REORDER} slices or more" in text
    assert f"of more than {MOST_VALUES} values" in text
    assert "{:g} R + {:g} G + {:g} B".format(*LUMA.tolist()) in text
    order = [text.index(word) for word in ("Decode", "colour", "Sort", "ends", "Resample", "Scale", "about its centre")]
    assert order == sorted(order)


def test_the_file_tells_which_images_its_network_was_trained_for(campaign: CampaignConfig) -> None:
    def told(of: CampaignConfig, key: str) -> str:
        return metadata(of, "enhancer" if key == "enhances" else "recogniser", ())[key]

    assert told(campaign, "judges") == "images that enhance=cnn3 put out, held within 0..1"
    assert told(campaign, "enhances") == "images that degrade=gaussian made worse"
    assert told(alone(campaign), "judges") == "images that degrade=gaussian made worse"
    clean = alone(campaign, degrade=replace(campaign.degrade, kind="none"))
    assert told(clean, "judges") == "images as they are"
    consistent = EnhancerConfig(kind="cnn3", data_consistency=True)
    kspace = replace(campaign, enhance=consistent, degrade=replace(campaign.degrade, kind="kspace"))
    assert "after the measured k-space was put back" in told(kspace, "judges")
