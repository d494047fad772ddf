"""MODEL: a Hugging Face checkpoint becomes one canonical decoder; families are data."""
