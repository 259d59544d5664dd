"""`fusechat plan`: what a run will take, from configs and counts alone. Starts nothing, downloads nothing, needs no Ray."""
