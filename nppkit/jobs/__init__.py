"""How work is started: the launcher of notebooks, GPU leases, torchrun, Slurm, and the plan made before."""
