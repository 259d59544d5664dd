"""`python -m fusechat`."""

from .cli import main

main()
