"""Small tests on few threads: two OpenMP pools on two cores cost more than they give."""

import torch

torch.set_num_threads(1)
