"""An engine that stays: the faces that it shows to a service, and the client that asks it.

Goes in: requests as bytes. Comes out: replies as bytes. Knows nothing about Ray, processes or who listens where.
"""
