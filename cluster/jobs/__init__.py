"""A run as a Ray job: what is sent, how it is followed and stopped."""
