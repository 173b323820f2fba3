from .app import make_app as make_app
from .limits import Limits as Limits, RequestError as RequestError
from .running import run as run
