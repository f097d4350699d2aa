"""System checks of the migrations that a database does not have yet."""
