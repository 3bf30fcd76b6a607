"""Shards, datasets and decoding. The only package that imports TensorFlow, in the modules that need it."""

import os

# TensorFlow only decodes here; its messages during the import don't concern users.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
