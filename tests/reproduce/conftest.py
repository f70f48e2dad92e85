import sys
from pathlib import Path

# the scripts import each other by name
sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "reproduce"))
