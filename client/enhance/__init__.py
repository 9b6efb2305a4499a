"""A study as DICOM in; derived series, segmentations, scores and a picture report for the hospital itself out."""
