"""Checkpoints in and out: safetensors by range, LoRA adapters, vocabularies that differ, shards of the fused model."""
