"""Speed beside other programs: apart from the tests, and run by `make bench`."""
