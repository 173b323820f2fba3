from .comparing import evaluate as evaluate
from .scorer import Scorer as Scorer, SmartIQA as SmartIQA, load_model as load_model
from .torchmetric import ImageQuality as ImageQuality

__version__: str
