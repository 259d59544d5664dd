"""What the released FuseChat code computes, at compiled speed."""
