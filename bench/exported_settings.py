"""The example project's settings with the model as ``embed_export`` has made it."""

import os

from example_project.settings import *  # noqa: F403
from example_project.settings import EMBEDSYNC_EMBEDDERS

EMBEDSYNC_EMBEDDERS = {
    "default": {
        **EMBEDSYNC_EMBEDDERS["default"],
        "BACKEND": "embedsync.embedders.onnx.OnnxEmbedder",
        "MODEL": os.environ["EXPORTED_MODEL"],
        "OPTIONS": {"threads": 1},
    }
}
