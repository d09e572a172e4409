"""Measures trio-offload beside its yardsticks, in one run; see README.md in this folder.

    python benchmarks/run.py [--quick] [--rows WORD ...] [--output FOLDER] [--check] [--bare-main]

The environment needs the package and the dependency group `bench` of pyproject.toml; ci/bench makes one.
"""

import sys

# multiprocessing, and what is built on it, runs the main script again in each worker, so what stands here is part of
# what is measured. The main script of a Trio program imports trio; this one does no more. With --bare-main it does not
# even do that, which shows those peers at their best (sys.argv is the same in their workers).
if "--bare-main" not in sys.argv:
    import trio  # noqa: F401

if __name__ == "__main__":
    import suite

    suite.main()
