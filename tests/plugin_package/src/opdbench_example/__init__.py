"""An example of a package that adds a method and a task to opdbench."""
