"""Target profiles: one TOML file per kind of machine."""
