"""The methods NeuCLIP is compared with: one file each, found by name."""
