"""Small helpers that belong to no single room."""
