from .comparing import evaluate as evaluate
from .scorer import Scorer as Scorer, load_model as load_model

__version__: str
