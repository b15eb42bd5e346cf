from .config import Config, load_config
from .detox import find_edit
from .run import Study

__all__ = ["Config", "Study", "find_edit", "load_config"]
