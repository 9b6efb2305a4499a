"""Reference sets of simulated patients: `python -m simulation.reference OUT KEY=VALUE...`, keys as for
wardround-simulate.

The test patients of all simulated hospitals, degraded as the campaign does it; at most 64 slices, those with a mask
first, at even distances. Nobody's own patients are in it: they are simulated, or of a public data set (`data=`);
`data=store` is refused.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from client.batches import evaluation_batch
from client.dataset import Slices, merge, open_site
from shared.config import CampaignConfig, SimulationConfig, load
from shared.errors import ConfigError, WardroundError
from shared.reference import Reference, save_reference
from simulation.prepare import prepare

MOST_SLICES = 64


def make_reference(config: SimulationConfig, work: Path) -> Reference:
    """A set of the campaign's own grid and scale; hospitals and stores are made below `work`.

    Raises ConfigError for data=store, which may hold a hospital's own patients.
    """
    campaign = config.campaign
    if campaign.data.kind == "store":
        raise ConfigError(
            "a reference set travels to every site, and data=store may hold real patients; choose data=phantom or "
            "another data set that anybody may see"
        )
    prepared = prepare(config, campaign.seed, work, lambda stage, site, done, total: None)
    datas = [open_site(each.store, site, campaign) for site, each in prepared.items()]
    return reference_of(merge(datas).test, campaign)


def reference_of(slices: Slices, campaign: CampaignConfig) -> Reference:
    """At most MOST_SLICES of these slices, clean and degraded as in an evaluation."""
    chosen_S = _chosen(slices)
    batch = evaluation_batch(slices, campaign, chosen_S)
    return Reference(
        clean_NCHW=batch.clean_BCHW.float(),
        degraded_NCHW=batch.degraded_BCHW.float(),
        mask_NHW=slices.mask_NHW[chosen_S],
        has_mask_N=slices.has_mask_N[chosen_S].to(torch.uint8),
    )


def _chosen(slices: Slices) -> Tensor:
    """Indices in order: of slices with a mask as many as there is room for, then others."""
    order = torch.argsort((~slices.has_mask_N).to(torch.uint8), stable=True)
    masked, others = order[slices.has_mask_N[order]], order[~slices.has_mask_N[order]]
    first = _spread(masked, MOST_SLICES)
    return torch.cat([first, _spread(others, MOST_SLICES - len(first))]).sort().values


def _spread(indices: Tensor, most: int) -> Tensor:
    count = min(len(indices), most)
    return indices[(2 * torch.arange(count) + 1) * len(indices) // max(2 * count, 1)]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    try:
        if not argv or "=" in argv[0]:
            raise ConfigError("write: python -m simulation.reference OUT KEY=VALUE...")
        out, config = Path(argv[0]), load("simulation", argv[1:], SimulationConfig)
        with tempfile.TemporaryDirectory() as work:
            reference = make_reference(config, Path(work))
        save_reference(out, reference)
    except WardroundError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    masked = int(reference.has_mask_N.sum())
    print(f"Written: {out}, {len(reference)} slices of simulated or public patients, {masked} with a mask")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
