"""`wardround-simulate KEY=VALUE...`: a whole federation on one machine, from DICOM to the report.

Exit codes (shared/errors.py): 0 done, 2 wrong use or config, 3 refused, 4 no answer, 5 bad data.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from shared.errors import ConfigError, WardroundError

# Read when torch loads its thread pool: threads that wait for one another sleep instead of spinning. Where another
# program wants a core too, a step with two threads is several times faster for it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HELP = """\
KEY=VALUE overrides, for instance:
  experiment=demo                     a prepared experiment: demo, phantom, hippocampus, pneumonia; or a grid of
                                      cells: enhancement, recognition, generation, personalise,
                                      trust
  data=mni data.root=FOLDER           mni, phantom, hippocampus, pneumonia, totalseg, store
  data.test=hippocampus data.test_root=FOLDER
                                      another data set, to test on as well
  objective=gradprom                  plain, joint, frozen, gradprom, estr, todnet, todnet-gated, mse-wgan, vgg-wgan
  objective.task_weight=0.1 objective.recognition=supervised
                                      lambda; supervised, or unsupervised (no labels after the warm-up)
  gate=global                         global, layer, weighted, projected, confident
  enhance=unet recognise=unet         unet, srresnet, cnn3, todnet, none; unet, cnn, vnet, resunet, voxresnet,
                                      attention-unet, multimix
  learn=supervised                    supervised, unet, enc, encssl, umtl, umtls, umtl-ssl, multimix; with the last
                                      two learn.mask_ssl= none, official0, pairwise, prior, federated, consistency
  selfreg=none                        none, selfreg, scr, ifd
  "data.labels={SITE:{masks:10,diagnoses:0.1}}"
                                      train with so many masked slices and such a share of the diagnoses
  degrade=gaussian degrade.sigma=[0.1,0.2]
                                      gaussian, poisson, blur, composite, downsample, kspace, low_dose, pairs,
                                      none (with enhance=none objective=plain: a recogniser alone)
  strategy=fedavg strategy.promotion=none
                                      fedavg, fedprox, fedadam, fedyogi; the federated gate: none, global, layer,
                                      projected, orthogonal
  sites=3 rounds=8 seed=0             how many hospitals, rounds; one seed instead of the budget's list
  budget=quick                        quick or full: rounds, local steps, seeds
  transport=inprocess                 inprocess, or ray (Flower's own simulation engine)
  run_dir=runs/NAME                   where hospitals, stores, checkpoints and the report go
  machine.device=auto machine.threads=2
Every key with its default: configs/simulation.yaml and the groups beside it. A run that was interrupted goes on where
it was when the same command is given again; fresh=true starts over. A grid keeps every finished cell:
study.only=[TABLE] runs some of its tables, study.limit=N at most N new cells, and the same command started twice uses
two cores.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one simulation; the return value is the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments.overrides)
        return 0
    except WardroundError as error:
        if arguments.debug:
            raise
        print(f"wardround-simulate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("wardround-simulate: interrupted; the same command goes on from the last finished round", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        reason = f"no space or no right to write ({error.strerror})" if isinstance(error, OSError) else "internal error"
        print(f"wardround-simulate: {reason}: {type(error).__name__}; run again with --debug", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wardround-simulate",
        description="Train one federated campaign on this machine and compare it with local and pooled training.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(overrides: Sequence[str]) -> None:
    from shared.config import SimulationConfig, load

    config = load("simulation", overrides, SimulationConfig)
    if config.study is not None:
        _refuse_what_cells_decide(overrides)
    console = Console(highlight=False)
    from simulation.campaigns import simulate

    report = simulate(config, console)
    console.print(f"Report: {_shown(report)}  and report.json beside it")


_OF_A_STUDY = ("experiment", "study.", "budget", "machine.", "data.root", "run_dir", "fresh", "name")


def _refuse_what_cells_decide(overrides: Sequence[str]) -> None:
    """A grid's cells bring their own campaign: an override that no cell would read is refused, not ignored."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if not key.startswith(_OF_A_STUDY):
            raise ConfigError(
                f"{key} is decided by each cell of the grid; a grid takes study.*, budget, machine.*, data.root, "
                "run_dir and fresh. To change what cells have in common: study.common=[...]"
            )


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
