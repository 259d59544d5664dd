"""The stages on Ray: the pool of workers, training jobs, job submission; the only place that imports ray."""
