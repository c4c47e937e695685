"""MAGMA's layers: each builds its graph and knows how its own weights are cut from a checkpoint."""
