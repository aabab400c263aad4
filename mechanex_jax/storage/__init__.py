"""Files of the library: folders, atomic writes, and stores of JSON records."""
