from .scenes import dead_leaves as dead_leaves, two_tone as two_tone
