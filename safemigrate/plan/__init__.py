"""What adding a field would do to one database."""
