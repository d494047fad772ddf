"""Quality of a bundle by the engine that ships: perplexity, divergence from a reference, and how often both agree."""
