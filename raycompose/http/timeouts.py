"""The deadline that an HTTP request brings along."""

import math
from collections.abc import Mapping

from raycompose.errors import HTTPError
from raycompose.flow.deadlines import HEADER, Deadline

_MARGIN, _MIN_MARGIN_S, _MAX_MARGIN_S = 0.1, 0.25, 1.0
"""How much earlier: a share of the time, within limits, and never more than half of it.

Ray Serve counts from when its proxy has the request, and until the proxy has the answer.
"""


def requested_deadline(headers: Mapping[str, str], *, early: bool) -> Deadline | None:
    """Return the deadline of the request's header ``x-request-timeout-seconds``.

    As in Ray Serve, 0 means that there is none.

    Args:
        headers: The request's.
        early: Have it pass a little before Ray Serve answers 408, which names no stage.

    Raises:
        HTTPError: It is no number of seconds (400).
    """
    text = headers.get(HEADER)
    if text is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 <= timeout_s < math.inf:
        raise HTTPError(400, f"{HEADER} must be a number of seconds, 0 or more, got {text!r}")
    if timeout_s == 0:
        return None
    margin_s = min(max(_MARGIN * timeout_s, _MIN_MARGIN_S), _MAX_MARGIN_S, timeout_s / 2)
    return Deadline(timeout_s, margin_s=margin_s if early else 0)
