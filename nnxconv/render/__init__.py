"""Results as text and JSON. Nothing is computed here that is not shown."""
