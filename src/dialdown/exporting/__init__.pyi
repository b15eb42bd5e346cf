from .control_vector import write_control_vector
from .delta import load_delta, save_delta
from .export import Exported, apply_delta, export

__all__ = ["Exported", "apply_delta", "export", "load_delta", "save_delta", "write_control_vector"]
