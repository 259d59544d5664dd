"""What `bench_service.py` is made of: the service that is asked, the engine beside it, the clients."""
