from .app import make_app as make_app
from .limits import Limits as Limits, Refusal as Refusal
from .running import run as run
