"""A study in, what the template study_base.html and the macros of study_parts.html need out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from server.study.drawing import svgs
from server.study.promises import NOT_CONTRADICTED
from server.study.sections import Report, Study
from server.study.verdicts import counted, difference_shown, target_sign, verdict_of, verdict_shown
from server.study.wording import figure
from server.wording import duration_shown


def base_context(
    report: Report, config: Mapping[str, Any], study: Study, promises: Mapping[str, str], *, corner: str
) -> dict[str, Any]:
    """`corner`: what stands above the first column of every table."""
    return {
        "report": report,
        "study": study,
        "promises": promises,
        "counted": counted,
        "verdict_shown": verdict_shown,
        "target_sign": target_sign,
        "not_contradicted": NOT_CONTRADICTED,
        "corner": corner,
        "config": json.dumps(config, indent=2, sort_keys=True),
        "pictures": {section.name: svgs(section.picture) for section in study.sections if section.picture},
        "duration": duration_shown,
        "figure": figure,
        "verdict_of": verdict_of,
        "difference_shown": difference_shown,
    }
