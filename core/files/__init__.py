"""Files and processes: whole writes, locks, what a dead writer left, mapped memory, untrusted
arrays.
"""
