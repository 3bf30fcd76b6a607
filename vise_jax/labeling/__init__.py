"""The labeling jobs: fit a labeler, label posts into shards, delete posts from shards; on one machine or on Beam."""
