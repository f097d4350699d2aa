"""Fill rows in committed batches until none is left."""
