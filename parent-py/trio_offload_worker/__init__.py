"""What a worker of trio-offload needs of Python code, each part imported when something needs it and never before.

A plain call imports nothing from here. Nothing in here imports trio.
"""
