"""What is behind the object, as functions of the rays' directions; one file each."""
