"""What add_required_field writes."""
