"""stub"""
from pathlib import Path
def write(results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
