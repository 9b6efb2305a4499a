"""Hospitals made up for a simulation: a config in, folders of DICOM studies, DICOM SEG labels and a CSV out.

    config -> cohort (who) -> brain, phantom, hippocampus, pneumonia, totalseg (pixels) -> dicom, segmentation (files)

Every draw comes from the campaign's seed and the site's name, so the same config writes the same bytes.
"""

from simulation.hospitals.write import write_hospitals

__all__ = ["write_hospitals"]
