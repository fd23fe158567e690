"""What the scripts share: command line, devices, training loss, checkpoints, the bookkeeping of a training
run, several processes, faster generation on a CPU, and the peers of bench.py.
"""
