"""DDL steps as data, run under short locks."""
