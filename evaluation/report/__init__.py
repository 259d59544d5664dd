"""Figures become a page, cards and tables. Reads what was measured; measures nothing."""
