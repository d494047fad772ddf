"""TUNE: the same prompts in every power mode of a Jetson, and the mode that makes the most tokens of a joule."""
