"""The questions and their safe answers, for any database."""
