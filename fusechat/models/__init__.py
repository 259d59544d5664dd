"""Model folders: where their files are, what their digests are, what memory a process that loads one keeps."""
