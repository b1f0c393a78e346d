"""Work that outlives the page: queue, state, resume.

Nothing depends on the process that asked: page, server or terminal may end, the job goes on
and is found again.
"""
