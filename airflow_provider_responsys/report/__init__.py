"""What people may know of a push: the numbers that the command line and the page show, from one place."""
