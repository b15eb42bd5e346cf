from .config import Config as Config
from .config import load_config as load_config
from .detox import find_edit as find_edit
from .run import Study as Study
