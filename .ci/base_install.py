"""The base install stays small and free of packages that cannot load beside a CPU torch."""

import importlib.metadata
import sys

LIMIT = 40
UNWANTED = ("torchvision", "torchaudio", "torchcodec", "triton")

installed = sorted({d.metadata["Name"].lower() for d in importlib.metadata.distributions()} - {"pip"})
found = [n for n in installed if n in UNWANTED or n.startswith(("nvidia", "cuda"))]
print(f"base install: {len(installed)} packages (limit {LIMIT})")
if len(installed) > LIMIT:
    sys.exit(f"more than {LIMIT} packages: {', '.join(installed)}")
if found:
    sys.exit(f"unwanted packages in the base install: {', '.join(found)}")
