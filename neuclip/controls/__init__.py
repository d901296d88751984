"""Controls of NeuCLIP: methods with its loss and without its network, one file each, found by name."""
