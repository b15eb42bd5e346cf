from .control_vector import read_control_vector, write_control_vector
from .delta import load_delta, save_delta
from .export import Exported, apply_delta, export

__all__ = [
    "Exported",
    "apply_delta",
    "export",
    "load_delta",
    "read_control_vector",
    "save_delta",
    "write_control_vector",
]
