"""What a run shows and leaves behind: its folder, the progress bar, pictures, the report."""
