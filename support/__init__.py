"""What the scripts share: command line, checkpoints, the bookkeeping of a training run, devices, several
processes, and the peers of bench.py.
"""
