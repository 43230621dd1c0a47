"""The folder `configs` beside the package; an installed package has it inside, in place of this."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "configs")]
