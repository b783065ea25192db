"""Judging a pre-trained encoder: its own task held out, frozen features, fine-tuning."""
