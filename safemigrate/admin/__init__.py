"""The runs in the admin."""

from safemigrate.admin.model_admin import BackfillRunAdmin

__all__ = ["BackfillRunAdmin"]
