"""The tests' project with a fill that lasts: small batches, and a pause after each, as long as a test says."""

from __future__ import annotations

import os

from tests.settings import *  # noqa: F403

SAFEMIGRATE_BATCH_SIZE = 1_000
SAFEMIGRATE_THROTTLES = ["safemigrate.throttles.Nice"]
SAFEMIGRATE_NICE_RATIO = float(os.environ.get("SAFEMIGRATE_TEST_NICE", "1"))
