"""ENGINE: a bundle's graph is lowered and compiled for one runtime, and runs behind one protocol."""
