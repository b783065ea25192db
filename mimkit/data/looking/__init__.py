"""Looking at images: at all before training or at each when it is met, and what changed since."""
