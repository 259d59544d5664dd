"""`python -m fusechat`."""

from .app.cli import main

main()
