"""What goes in and out of the program: options that calls take, text and files that leave."""
