"""From stored bytes to normalised tensors: decoding, chance, cutting, colours."""
