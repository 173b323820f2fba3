"""The tools: settings, losses, metrics, results, checkpoints. Root modules import them, never the other way."""
