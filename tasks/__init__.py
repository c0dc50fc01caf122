"""What a round is made of: stages and their strategies, domains, engines; and the rooms behind them."""

import os
import sys

ROOM = 100_000_000
"""Bytes free, below which Python keeps no compiled code: where the disk is full, 3.11 keeps a part of it, of which no later
import can make anything (python/cpython#126606).
"""
if hasattr(os, "statvfs") and (disk := os.statvfs(__path__[0])).f_bavail * disk.f_frsize < ROOM:
    sys.dont_write_bytecode = True
