"""The Figshare brain tumour data as a `datasets` builder."""
