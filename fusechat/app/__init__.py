"""The roof: the command line and what it shows. Chooses and orders stages; everything below may be imported, by functions."""
