import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "examples" / "reproduce"
sys.path.insert(0, str(SCRIPTS))  # the scripts import each other by name
