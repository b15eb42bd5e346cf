from .control_vector import read_control_vector as read_control_vector
from .control_vector import write_control_vector as write_control_vector
from .delta import load_delta as load_delta
from .delta import save_delta as save_delta
from .export import Exported as Exported
from .export import apply_delta as apply_delta
from .export import export as export
