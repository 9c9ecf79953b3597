"""`pipeline study`: teachers trained with several settings, and what the comparison shows."""
