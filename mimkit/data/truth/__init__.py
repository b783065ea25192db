"""What is known of the inside of images: the class of every pixel, and the objects they show."""
