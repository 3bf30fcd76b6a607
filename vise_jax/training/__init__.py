"""From engagement shards to an encoder: losses, optimiser, state, step, sharding, checkpoints, loop."""
