"""From engagement shards to an encoder: losses, optimizer, state, step, sharding, checkpoints, loop."""
