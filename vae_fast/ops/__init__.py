"""The raw ops, registered with torch.library, and the autograd Functions over them."""
