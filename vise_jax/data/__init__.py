"""Where images come from: the only room that imports TensorFlow, and only in the modules that need it."""

import os

# TensorFlow only decodes here; what it says about itself as it is imported helps nobody.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
