"""The gallery and the README's table of systems are what docs/gallery.py makes of the registry and results/."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_gallery_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "gallery.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr + "run: python docs/gallery.py"
