"""Engines that stay: the run's models as a Ray Serve application behind one HTTP door.

Goes in: a run. Comes out: a service that outlives the command, its record, and where a run finds it. What an engine says
is `inference/serving/`'s; replicas, their number, their health and their replacement are Ray Serve's.
"""
