"""Workers on Ray that work off units: the loop, placement, the meter, what is checked before any of them starts."""
