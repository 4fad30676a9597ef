"""What tests/bench/peers.py is made of. `contest`, `environment`, `machine` and `report` need Python alone and run in the
command; the other modules import torch and run in the processes of the contestants (`rank.py`)."""
