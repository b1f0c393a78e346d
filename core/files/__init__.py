"""Files and processes: names, whole writes, rows as they come, locks, what a dead writer left,
mapped memory, untrusted arrays.
"""
