"""The tests' project with a fill that lasts: small batches, and a pause after each, as long as a test says."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

SAFEMIGRATE_BATCH_SIZE = 1_000
SAFEMIGRATE_THROTTLES = ["tests.support.pauses.Pauses"]
