"""A throttle that makes a fill last: a pause after each batch, so many times as long as the environment says."""

from __future__ import annotations

import os

from safemigrate.throttles import Nice


class Pauses(Nice):
    ratio = float(os.environ.get("SAFEMIGRATE_TEST_NICE", "1"))
