"""The stages on Ray: teacher pool, training jobs, job submission; the only place that imports ray."""
