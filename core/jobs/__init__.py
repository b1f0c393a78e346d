"""Work that outlives the page: queue, state, resume.

A job does not depend on the process that started it: the page, server or terminal may exit, and the
job continues and can be found again.
"""
